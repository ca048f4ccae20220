package client

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// operated are the services of one server that change many tasks, of which the
// first answers are lost. It notes the cell that each call names.
type operated struct {
	mu    sync.Mutex
	lost  int // answers
	named []string
}

type (
	operatedQueues struct {
		isobarv1.UnimplementedQueueServiceHandler
		*operated
	}
	operatedLetters struct {
		isobarv1.UnimplementedDeadLetterServiceHandler
		*operated
	}
)

func (o *operated) called(cell string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.named = append(o.named, cell)
	if o.lost > 0 {
		o.lost--
		return unknown()
	}
	return nil
}

func (o operatedQueues) Pause(_ context.Context, r *isobarv1.PauseRequest) (*isobarv1.PauseResponse, error) {
	return &isobarv1.PauseResponse{}, o.called(r.Cell)
}

func (o operatedQueues) Resume(_ context.Context, r *isobarv1.ResumeRequest) (*isobarv1.ResumeResponse, error) {
	return &isobarv1.ResumeResponse{}, o.called(r.Cell)
}

func (o operatedQueues) Purge(_ context.Context, r *isobarv1.PurgeRequest) (*isobarv1.PurgeResponse, error) {
	if r.Token == "" {
		return &isobarv1.PurgeResponse{Cancelled: 1, Token: "the rest"}, o.called(r.Cell)
	}
	return &isobarv1.PurgeResponse{Cancelled: 1}, o.called(r.Cell)
}

func (o operatedLetters) Redrive(_ context.Context, r *isobarv1.RedriveRequest) (*isobarv1.RedriveResponse, error) {
	return &isobarv1.RedriveResponse{}, o.called(r.Cell)
}

// What changes the tasks of the asked cell changes those of no other: when the
// answer is lost, and a server of another cell is asked next, the repeat names the
// cell that was meant.
func TestVerbsOfTheAskedCellStayThere(t *testing.T) {
	t.Parallel()
	calls := map[string]func(context.Context, *Client, string) error{
		"pause": func(ctx context.Context, c *Client, cell string) error {
			_, err := c.Pause(ctx, &isobarv1.PauseRequest{Function: "f", Cell: cell})
			return err
		},
		"resume": func(ctx context.Context, c *Client, cell string) error {
			_, err := c.Resume(ctx, &isobarv1.ResumeRequest{Function: "f", Cell: cell})
			return err
		},
		"purge": func(ctx context.Context, c *Client, cell string) error {
			_, err := c.Purge(ctx, &isobarv1.PurgeRequest{Function: "f", Cell: cell})
			return err
		},
		"redrive by a filter": func(ctx context.Context, c *Client, cell string) error {
			_, err := c.Redrive(ctx, &isobarv1.RedriveRequest{Filter: &isobarv1.DeadLetterFilter{Function: "f"}, Cell: cell})
			return err
		},
	}
	for name, call := range calls {
		for _, cell := range []string{"", "eu-2"} { // that the caller names
			synctest.Test(t, func(t *testing.T) {
				fakes := map[string]*fake{}
				for address, in := range map[string]string{"a": "eu-1", "b": "us-1"} {
					fakes[address] = &fake{
						operated: &operated{},
						cells:    &isobarv1.CellsResponse{Cells: []*isobarv1.CellInfo{{Cell: "ap-1"}, {Cell: in, Self: true}}},
					}
				}
				fakes["a"].operated.lost = 1
				cl := newClient(t, []string{"a", "b"}, fakes)
				if err := call(t.Context(), cl, cell); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				want := cell
				if want == "" {
					want = "eu-1"
				}
				named := slices.Concat(fakes["a"].operated.named, fakes["b"].operated.named)
				if len(named) < 2 || len(fakes["b"].operated.named) == 0 || slices.ContainsFunc(named, func(cell string) bool { return cell != want }) {
					t.Errorf("%s: a was asked for %q, b for %q, want %s", name, fakes["a"].operated.named, fakes["b"].operated.named, want)
				}
			})
		}
	}
}
