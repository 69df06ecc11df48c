package kube

import (
	"context"
	"net/http"
	"net/http/httptrace"
	"sync"
	"time"

	"k8s.io/client-go/rest"
)

// ConnectOnce has the requests of all clients that are made from c make connections one after the
// other, so that most find the first. Go's HTTP/2 client has each request that finds none make one, and
// closes all but the first then: at its start an agent makes ten requests at once, and the handshakes
// were half of what the starts of all agents cost the API server.
func ConnectOnce(c *rest.Config) {
	t := &turns{}
	c.Wrap(func(next http.RoundTripper) http.RoundTripper { return connector{next, t} })
}

type connector struct {
	next http.RoundTripper
	*turns
}

// turns are those of requests for which there is no connection.
type turns struct {
	mu  sync.Mutex // guards now, and the mine of all requests
	now *turn      // nil if no request looks for a connection
}

type turn struct {
	// reached is closed when there is a connection over which the handshake begins, and over when
	// the request has its connection or has failed.
	reached, over chan struct{}
}

// unreached is how long others wait for a request that does not reach the API server. It may do so at
// its next attempt only, and others at once.
const unreached = time.Second

// RoundTrip implements http.RoundTripper. It waits for the request's turn before the client looks for
// a connection, never in a hook: Go's HTTP/2 client calls GetConn with its list of connections locked,
// which the request whose turn it is needs, to add its own or to find it there.
func (c connector) RoundTrip(r *http.Request) (*http.Response, error) {
	s := &seeker{turns: c.turns}
	defer s.end()
	s.take(r.Context())
	return c.next.RoundTrip(r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		GetConn: func(string) { s.takeFree() }, // again, if the connection that it got is of no use
		ConnectDone: func(_, _ string, err error) {
			if err == nil {
				s.reached()
			}
		},
		GotConn: func(httptrace.GotConnInfo) { s.end() },
	})))
}

// seeker is a request.
type seeker struct {
	*turns
	mine *turn // nil while it is not its turn
}

// take returns when it is the request's turn, or when it is not to wait any longer.
func (s *seeker) take(ctx context.Context) {
	patience := time.NewTimer(unreached)
	defer patience.Stop()
	for {
		other := s.takeFree()
		if other == nil {
			return
		}
		select {
		case <-other.over:
			continue
		case <-ctx.Done():
			return
		case <-other.reached:
		case <-patience.C:
			return
		}
		select {
		case <-other.over:
		case <-ctx.Done():
			return
		}
	}
}

// takeFree makes it the request's turn, if it is no other's, which it returns.
func (s *seeker) takeFree() (other *turn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mine != nil {
		return nil
	}
	if s.now == nil {
		s.mine = &turn{reached: make(chan struct{}), over: make(chan struct{})}
		s.now = s.mine
		return nil
	}
	return s.now
}

func (s *seeker) reached() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mine == nil {
		return
	}
	select {
	case <-s.mine.reached: // by the other family
	default:
		close(s.mine.reached)
	}
}

func (s *seeker) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mine != nil {
		close(s.mine.over)
		s.now, s.mine = nil, nil
	}
}
