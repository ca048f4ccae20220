package scheduler

import (
	"context"
	"crypto/sha256"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
	"github.com/isobar-mesh/isobar/scheduler/fsm"
)

// offeredGuest is a first attempt of a new task of eu-1, without a payload.
func offeredGuest() *meshv1.OfferItem {
	none := sha256.Sum256(nil)
	return &meshv1.OfferItem{Guest: &meshv1.GuestRecord{
		TaskId: string(mesh.NewTaskID(newULID(), "eu-1", "abcdef")), Attempt: 1, Home: "eu-1", Incarnation: "abcdef", Tenant: "default", Function: "work",
		Version: "sha-work", Variant: "only", TimeoutMs: 1000, PayloadSha256: none[:],
	}}
}

// TestARepeatedOfferHasTheAnswerOfTheFirst: an offer that is repeated while it is
// being committed is accepted when it is committed, and not before; when that
// fails, it is refused.
func TestARepeatedOfferHasTheAnswerOfTheFirst(t *testing.T) {
	t.Parallel()
	for _, fails := range []bool{false, true} {
		inWorld(t, func(w *world) {
			other := w.cell("us-1")
			other.worker("w1", offering(4, "wasm"), nil)
			synctest.Wait()
			other.late.slow(time.Second)
			if fails {
				other.late.refuse(errors.New("no room on the disk"))
			}
			item := offeredGuest()
			var answers sync.WaitGroup
			for range 3 {
				answers.Go(func() {
					res, err := other.AcceptOffers(w.ctx, "eu-1", &meshv1.OfferRequest{Home: "eu-1", Incarnation: "abcdef", Items: []*meshv1.OfferItem{item}})
					switch {
					case err != nil:
						t.Errorf("fails %t: %v", fails, err)
					case res.Results[0].Accepted == fails || fails && res.Results[0].Reason != "unavailable":
						t.Errorf("fails %t: %v", fails, res.Results[0])
					case !fails:
						if _, ok := fsm.Guest(other.State, item.Guest.TaskId, 1); !ok {
							t.Error("accepted before it was committed")
						}
					}
				})
				time.Sleep(100 * time.Millisecond)
			}
			answers.Wait()
			// A caller who leaves meanwhile is not kept.
			ctx, cancel := context.WithTimeout(w.ctx, 10*time.Millisecond)
			defer cancel()
			other.late.refuse(nil)
			item = offeredGuest()
			w.go_(func() {
				_, _ = other.AcceptOffers(w.ctx, "eu-1", &meshv1.OfferRequest{Incarnation: "abcdef", Items: []*meshv1.OfferItem{item}})
			})
			synctest.Wait()
			begin := time.Now()
			res, err := other.AcceptOffers(ctx, "eu-1", &meshv1.OfferRequest{Incarnation: "abcdef", Items: []*meshv1.OfferItem{item}})
			if took := time.Since(begin); err != nil || res.Results[0].Accepted || took > 100*time.Millisecond {
				t.Errorf("fails %t: after %v %v, %v", fails, took, res, err)
			}
		})
	}
}

func TestOffersThatAreRefused(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		other := w.cell("us-1")
		other.worker("w1", offering(1, "wasm"), nil)
		guest := func(change func(*meshv1.OfferItem)) *meshv1.OfferItem {
			it := offeredGuest()
			change(it)
			return it
		}
		for reason, change := range map[string]func(*meshv1.OfferItem){
			"bad_offer":       func(it *meshv1.OfferItem) { it.Guest.Home = "ap-1" },
			"residency":       func(it *meshv1.OfferItem) { it.Guest.Allowed = []string{"eu"} },
			"unknown_version": func(it *meshv1.OfferItem) { it.Guest.Variant = "another" },
			"full":            func(it *meshv1.OfferItem) { it.Guest.Function, it.Guest.Version = "big", "sha-big" },
		} {
			w.registry.add("big", variant("only", "wasm", func(v *isobarv1.Variant) { v.Resources.Cpu = 64 }))
			res, err := other.AcceptOffers(w.ctx, "eu-1", &meshv1.OfferRequest{Home: "eu-1", Incarnation: "abcdef", Items: []*meshv1.OfferItem{guest(change)}})
			if err != nil || res.Results[0].Accepted || res.Results[0].Reason != reason {
				t.Errorf("%s: %v, %v", reason, res, err)
			}
		}
		for what, change := range map[string]func(*meshv1.OfferItem){
			"payload": func(it *meshv1.OfferItem) { it.Payload = []byte("other bytes") },
			"version": func(it *meshv1.OfferItem) { it.Guest.Version = "sha-none" },
			"nothing": func(it *meshv1.OfferItem) { it.Guest = nil },
		} {
			res, err := other.AcceptOffers(w.ctx, "eu-1", &meshv1.OfferRequest{Incarnation: "abcdef", Items: []*meshv1.OfferItem{guest(change)}})
			if err != nil || res.Results[0].Accepted {
				t.Errorf("%s: %v, %v", what, res, err)
			}
		}
		res, err := other.AcceptOffers(w.ctx, "eu-1", &meshv1.OfferRequest{Incarnation: "abcdef", GuestIncarnation: "gone", Items: []*meshv1.OfferItem{guest(func(*meshv1.OfferItem) {})}})
		if err != nil || res.Results[0].Reason != "incarnation" {
			t.Errorf("incarnation: %v, %v", res, err)
		}
		if n := other.guests(); n != 0 {
			t.Errorf("%d guests", n)
		}
	})
}
