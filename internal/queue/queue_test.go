package queue

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/semaphore"
)

func TestEnter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		capacity := semaphore.NewWeighted(2)
		patient, impatient := New(capacity, 1, time.Second), New(capacity, 0, time.Second)
		if err := patient.Enter(t.Context(), 2); err != nil {
			t.Fatalf("the first caller got %v, want a turn", err)
		}
		if err := impatient.Enter(t.Context(), 1); !errors.Is(err, ErrFull) {
			t.Errorf("a queue without waiting returned %v, want ErrFull", err)
		}
		second := make(chan error)
		go func() { second <- patient.Enter(t.Context(), 1) }()
		synctest.Wait()
		if n := patient.waiting.Load(); n != 1 {
			t.Errorf("%d callers wait, want 1", n)
		}
		if err := patient.Enter(t.Context(), 1); !errors.Is(err, ErrFull) {
			t.Errorf("a caller over the limit got %v, want ErrFull", err)
		}
		patient.Leave(1)
		if err := <-second; err != nil {
			t.Errorf("after Leave, the waiting caller got %v, want a turn", err)
		}
		if err := patient.Enter(t.Context(), 1); !errors.Is(err, ErrTimeout) {
			t.Errorf("a caller that waited for a second got %v, want ErrTimeout", err)
		}
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		if err := patient.Enter(cancelled, 1); !errors.Is(err, context.Canceled) {
			t.Errorf("a cancelled caller got %v, want context.Canceled", err)
		}
		patient.Leave(1)
		if err := impatient.Enter(t.Context(), 1); err != nil {
			t.Errorf("after all calls, a part of the capacity is still taken: %v", err)
		}
	})
}
