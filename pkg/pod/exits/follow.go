package exits

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"flock.fritzlab.net/flock/internal/backoff"
)

// service is a runtime's service that reports its containers.
type service interface {
	// subscribe opens a stream of events and returns how to take the next.
	subscribe(context.Context) (next func() (event, error), err error)
	// list returns the containers of pods. It may leave out some that run.
	list(context.Context) ([]state, error)
	// identify returns a container with its pod.
	identify(ctx context.Context, id string) (Container, error)
	// runs asks for one container whether it still runs. One that the runtime does
	// not have any more does not. An error is no answer.
	runs(context.Context, Container) (bool, error)
}

// event is what a stream says of a container.
type event struct {
	kind kind
	id   string
	// who is the container, where the stream says so; else identify has to.
	who *Container
	at  time.Time // of the exit
}

type kind int8

const (
	nothing kind = iota
	started
	ended
	removed
)

const (
	// settle is how long after subscribing a second list is taken: a stream does
	// not say when it has begun, so an exit between the first list and that moment
	// is on neither.
	settle = 500 * time.Millisecond
	// answerPatience is for one list.
	answerPatience = 10 * time.Second
	// statusPatience is for one answer of runs. A shim that needs longer is asked
	// again.
	statusPatience = 2 * time.Second
)

// follow runs one stream to its end. It calls connected once the stream has held for a
// moment, and emit with each exit from the start, including those that happened while
// the runtime was not watched. No other goroutine uses the table during the call.
func follow(ctx context.Context, s service, known table, connected func(), emit func(Exit)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	next, err := s.subscribe(ctx)
	if err != nil {
		return plain(err)
	}
	events, failed := make(chan event), make(chan error, 1)
	go func() {
		for {
			e, err := next()
			if err != nil {
				failed <- err
				return
			}
			select {
			case events <- e:
			case <-ctx.Done():
				return
			}
		}
	}()

	gone := make(chan string)
	confirm := func(c Container) {
		if exited(ctx, s, c) {
			select {
			case gone <- c.ID:
			case <-ctx.Done():
			}
		}
	}
	list := func() ([]state, error) {
		ctx, cancel := context.WithTimeout(ctx, answerPatience)
		defer cancel()
		return s.list(ctx)
	}
	emitAll := func(exits []Exit) {
		for _, e := range exits {
			emit(e)
		}
	}
	enter := func(states []state) {
		exits, missing := known.list(states, time.Now())
		emitAll(exits)
		for _, id := range missing {
			go confirm(known[id].Container)
		}
	}
	first, err := list()
	if err != nil {
		return plain(err)
	}
	known.reconnected()
	enter(first)

	second := make(chan []state, 1)
	timer := time.AfterFunc(settle, func() {
		states, err := list()
		if err != nil {
			select {
			case failed <- err:
			default:
			}
			return
		}
		second <- states
	})
	defer timer.Stop()

	identified := make(chan Container)
	identify := func(id string) {
		c, err := s.identify(ctx, id)
		if err != nil {
			return // it is gone already, or no pod's
		}
		select {
		case identified <- c:
		case <-ctx.Done():
		}
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-failed:
			return plain(err)
		case states := <-second:
			enter(states)
			connected()
		case id := <-gone:
			emitAll(known.end(id, time.Now()))
		case c := <-identified:
			emitAll(known.learn(c))
		case e := <-events:
			if e.who != nil {
				emitAll(known.learn(*e.who))
			}
			switch e.kind {
			case started:
				if !known.knows(e.id) {
					go identify(e.id)
				}
			case ended:
				emitAll(known.end(e.id, e.at))
				if !known.knows(e.id) {
					go identify(e.id)
				}
			case removed:
				emitAll(known.end(e.id, time.Now()))
				known.remove(e.id)
			}
		}
	}
}

// exited asks for a container that a list left out until there is an answer, and
// reports whether the container has exited.
func exited(ctx context.Context, s service, c Container) bool {
	retry := backoff.Backoff{First: 100 * time.Millisecond, Last: 5 * time.Second}
	for {
		running, err := func() (bool, error) {
			ctx, cancel := context.WithTimeout(ctx, statusPatience)
			defer cancel()
			return s.runs(ctx, c)
		}()
		if err == nil {
			return !running
		}
		if retry.Wait(ctx) != nil {
			return false
		}
	}
}

// plain says what an error of gRPC means, without its wrapping.
func plain(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("the runtime has ended the stream; CRI-O does so at once without enable_pod_events")
	}
	switch s := status.Convert(err); s.Code() {
	case codes.Unknown:
		return err
	case codes.Unimplemented:
		return fmt.Errorf("not served: %s", s.Message())
	default:
		return fmt.Errorf("%s: %s", s.Code(), s.Message())
	}
}
