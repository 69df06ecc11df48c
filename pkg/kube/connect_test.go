package kube

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/rest"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// Many requests of several clients at once are one connection, and few when the one that they had is gone.
func TestConnectOnce(t *testing.T) {
	t.Parallel()
	var made atomic.Int64
	var open sync.Map
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"kind":"NodeConfigList","apiVersion":"flock.fritzlab.net/v1alpha1","items":[]}`)
	}))
	server.EnableHTTP2 = true
	server.Config.ConnState = func(c net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			made.Add(1)
			open.Store(c, nil)
		case http.StateClosed:
			open.Delete(c)
		}
	}
	server.StartTLS()
	defer server.Close()
	config := &rest.Config{Host: server.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	ConnectOnce(config)
	var clients []*Client
	for range 2 {
		c, err := NewClient(config)
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	for round := range 5 {
		var all sync.WaitGroup
		for i := range 40 {
			all.Go(func() {
				get := func() error {
					return clients[i%2].Flock().Get().Resource(nodeConfigs).Do(t.Context()).Into(&v1alpha1.NodeConfigList{})
				}
				err := get()
				for tries := 0; err != nil && tries < 10; tries++ { // of the connection that is gone
					err = get()
				}
				if err != nil {
					t.Errorf("round %d: %v", round, err)
				}
			})
		}
		all.Wait()
		// A request that was sent over the connection that is gone looks for another within
		// net/http, where it cannot wait for its turn.
		if n := made.Swap(0); n != 1 && (round == 0 || n > 4) {
			t.Errorf("round %d: %d connections", round, n)
		}
		open.Range(func(c, _ any) bool { _ = c.(net.Conn).Close(); return true })
	}
}

// Requests that begin at any moment of another's look for a connection all end: a hook that waits would
// do so with the HTTP/2 client's list of connections locked.
func TestConnectNeverHangs(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	defer server.CloseClientConnections() // Close waits for those of clients that hang
	const patience = 20 * time.Second
	for range 300 { // connections
		config := &rest.Config{Host: server.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}, Dial: (&net.Dialer{}).DialContext}
		ConnectOnce(config)
		client, err := rest.HTTPClientFor(config)
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for i := range 40 {
			all.Go(func() {
				time.Sleep(time.Duration(i) * 100 * time.Microsecond) // from before the handshake until after it
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				r, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
				if err != nil {
					t.Error(err)
					return
				}
				resp, err := client.Do(r)
				if err != nil {
					t.Error(err)
					return
				}
				_ = resp.Body.Close()
			})
		}
		done := make(chan struct{})
		go func() { all.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(2 * patience):
			t.Fatal("requests hang, in spite of their deadline")
		}
		client.CloseIdleConnections()
	}
}

// roundTrip is an API server as a request sees it.
type roundTrip func(r *http.Request, trace *httptrace.ClientTrace) error

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) {
	trace := httptrace.ContextClientTrace(r.Context())
	trace.GetConn("192.0.2.1:443")
	if err := f(r, trace); err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
}

// What others do while a request looks for a connection: they wait while that may succeed, and for
// nothing else.
func TestConnectTurns(t *testing.T) {
	t.Parallel()
	failed := errors.New("failed")
	for _, tc := range []struct {
		name  string
		first roundTrip
		// patience of the second request, 0 for more than that.
		patience time.Duration
		// after which the second request is sent, 0 for never.
		second time.Duration
	}{
		{"there is a connection", func(_ *http.Request, trace *httptrace.ClientTrace) error {
			trace.GotConn(httptrace.GotConnInfo{Reused: true})
			time.Sleep(time.Hour) // the answer
			return nil
		}, 0, time.Nanosecond},
		{"the API server is busy", func(_ *http.Request, trace *httptrace.ClientTrace) error {
			trace.ConnectDone("tcp", "", nil)
			trace.ConnectDone("tcp", "", nil) // the other family
			time.Sleep(9 * time.Second)       // the handshake
			trace.GotConn(httptrace.GotConnInfo{})
			time.Sleep(time.Hour)
			return nil
		}, 0, 9 * time.Second},
		{"the connection that there was is of no use", func(_ *http.Request, trace *httptrace.ClientTrace) error {
			trace.GotConn(httptrace.GotConnInfo{Reused: true})
			trace.GetConn("192.0.2.1:443")
			trace.ConnectDone("tcp", "", nil)
			time.Sleep(9 * time.Second)
			trace.GotConn(httptrace.GotConnInfo{})
			trace.ConnectDone("tcp", "", nil) // of one that nobody needs any more
			return nil
		}, 0, 9 * time.Second},
		{"the handshake fails", func(_ *http.Request, trace *httptrace.ClientTrace) error {
			trace.ConnectDone("tcp", "", nil)
			time.Sleep(10 * time.Second)
			return failed
		}, 0, 10 * time.Second},
		{"nothing listens", func(_ *http.Request, trace *httptrace.ClientTrace) error {
			time.Sleep(time.Millisecond)
			trace.ConnectDone("tcp", "", failed)
			return failed
		}, 0, time.Millisecond},
		{"packets are lost", func(_ *http.Request, trace *httptrace.ClientTrace) error {
			time.Sleep(30 * time.Second)
			trace.ConnectDone("tcp", "", failed)
			return failed
		}, 0, unreached},
		{"the second waits no longer than it may", func(_ *http.Request, trace *httptrace.ClientTrace) error {
			trace.ConnectDone("tcp", "", nil)
			time.Sleep(9 * time.Second)
			return nil
		}, 3 * time.Second, 3 * time.Second},
		{"not even where nothing is reached", func(*http.Request, *httptrace.ClientTrace) error {
			time.Sleep(9 * time.Second)
			return failed
		}, unreached / 2, unreached / 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				shared := &turns{}
				get := func(ctx context.Context, next roundTrip) {
					r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://192.0.2.1", nil)
					if err != nil {
						t.Error(err)
					}
					if resp, err := (connector{next, shared}).RoundTrip(r); err == nil {
						resp.Body.Close()
					}
				}
				began := time.Now()
				go get(t.Context(), tc.first)
				time.Sleep(time.Nanosecond)
				ctx := t.Context()
				if tc.patience > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithDeadline(ctx, began.Add(tc.patience))
					defer cancel()
				}
				var after time.Duration
				get(ctx, func(*http.Request, *httptrace.ClientTrace) error { after = time.Since(began); return nil })
				if d := after - tc.second; d < 0 || d > time.Nanosecond {
					t.Errorf("the second is sent after %v, want %v", after, tc.second)
				}
				time.Sleep(2 * time.Hour) // all end
				if shared.now != nil {
					t.Error("a turn is left")
				}
			})
		})
	}
}
