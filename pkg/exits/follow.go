package exits

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// service is one of a runtime that tells of its containers.
type service interface {
	// subscribe opens a stream of events and returns how to take the next.
	subscribe(context.Context) (next func() (event, error), err error)
	// list returns all containers of pods.
	list(context.Context) ([]state, error)
	// identify returns whose container it is.
	identify(ctx context.Context, id string) (Container, error)
}

// event is what a stream tells of a container.
type event struct {
	kind kind
	id   string
	// who is the container, where the stream says so; else identify has to.
	who *Container
	at  time.Time // of the end
}

type kind int8

const (
	nothing kind = iota
	started
	ended
	removed
)

const (
	// settle is how long after subscribing a second list is taken: a stream
	// does not say when it has begun, so what ends between the first list and
	// that moment is on neither.
	settle = 500 * time.Millisecond
	// answerPatience is for one list.
	answerPatience = 10 * time.Second
)

// follow runs one stream to its end. It calls connected once the stream has held
// for a moment; exits are told from the start. The table is its own meanwhile.
func follow(ctx context.Context, s service, known table, connected func(), tell func(Exit)) error {
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

	list := func() ([]state, error) {
		ctx, cancel := context.WithTimeout(ctx, answerPatience)
		defer cancel()
		return s.list(ctx)
	}
	tellAll := func(exits []Exit) {
		for _, e := range exits {
			tell(e)
		}
	}
	first, err := list()
	if err != nil {
		return plain(err)
	}
	known.reconnected()
	tellAll(known.list(first, time.Now()))

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
			tellAll(known.list(states, time.Now()))
			connected()
		case c := <-identified:
			tellAll(known.learn(c))
		case e := <-events:
			if e.who != nil {
				tellAll(known.learn(*e.who))
			}
			switch e.kind {
			case started:
				if !known.knows(e.id) {
					go identify(e.id)
				}
			case ended:
				tellAll(known.end(e.id, e.at))
				if !known.knows(e.id) {
					go identify(e.id)
				}
			case removed:
				tellAll(known.end(e.id, time.Now()))
				known.remove(e.id)
			}
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
