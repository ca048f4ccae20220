// Package client is the Go client of a mesh. Any server of any cell may be
// asked; the client finds one that answers, follows a cell's pointer to where
// a task must be submitted, and repeats what is safe to repeat.
//
// What is repeated:
//
//   - a call that never left, because nobody listened at the address: at the
//     next address, each once, then ErrUnreachable;
//   - a call without side effects, and Deploy and Cancel, which come to the
//     same however often they are made: at the next address for Patience, as
//     long as the cell says unavailable;
//   - a Submit that a cell says it did not accept, for being unavailable: the
//     same. For any other reason it is the caller's to decide;
//   - a Submit whose outcome is unknown: with the same request id at the same
//     cell, until the context ends. The cell makes one task of them all;
//   - an Invoke only when it never left or was not accepted;
//   - a Publish with the same request id, so that it stores nothing twice, an
//     Ack, and a Consume with the same session, which goes on where it was.
//
// Errors are *Error, and carry what the cell said: a reason, a hint, where to
// ask instead.
//
//	c, err := client.New([]string{"http://127.0.0.1:7101"})
//	if err != nil {
//		return err
//	}
//	defer c.Close()
//	res, err := c.Submit(ctx, &isobarv1.SubmitRequest{Tasks: []*isobarv1.TaskSpec{{
//		Function: "upper", Input: &isobarv1.TaskSpec_Text{Text: "hello"},
//	}}})
//	if err != nil {
//		return err
//	}
//	task, ended, err := c.Wait(ctx, res.Results[0].TaskId, time.Minute)
package client
