package api

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler"
	"github.com/isobar-mesh/isobar/scheduler/peers"
)

// home is a server that answers Submit with those results.
type home struct {
	isobarv1.UnimplementedTaskServiceHandler
	results []*isobarv1.SubmitResult
}

func (h *home) Submit(context.Context, *isobarv1.SubmitRequest) (*isobarv1.SubmitResponse, error) {
	return &isobarv1.SubmitResponse{Results: h.results}, nil
}

type noServers struct{}

func (noServers) Servers() []peers.Server { return nil }

// A Submit that was passed on, and whose answer has not its one result, may have
// been accepted: the outcome is unknown, never a refusal or a crash.
func TestForwardedSubmitWithoutItsResult(t *testing.T) {
	t.Parallel()
	one := &isobarv1.SubmitResult{TaskId: "t1"}
	for n, results := range [][]*isobarv1.SubmitResult{nil, {one}, {one, one}} {
		server := connect.NewServer()
		isobarv1.RegisterTaskServiceHandler(server, &home{results: results})
		mux := http.NewServeMux()
		connecthttp.Mount(mux, server)
		srv := httptest.NewServer(mux)
		t.Cleanup(srv.Close)
		h := &tasks{Services: New(Options{Directory: noServers{}})}
		res, err := h.submitThere("us-1", 0)(t.Context(), connect.NewClient(connecthttp.NewTransport(srv.Client(), srv.URL)), &isobarv1.TaskSpec{Function: "f"})
		if n == 1 {
			if err != nil || res.GetTaskId() != "t1" {
				t.Errorf("one result: %v, %v", res, err)
			}
			continue
		}
		ref, ok := errors.AsType[*scheduler.Refusal](err)
		if !ok || !ref.Unknown || ref.Reason != scheduler.HomeUnavailable || ref.Cell != "us-1" {
			t.Errorf("%d results: %v, %v", n, res, err)
		}
	}
}
