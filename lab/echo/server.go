package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"sync/atomic"
	"time"
)

// answer is what GET / says.
type answer struct {
	Pod        string     `json:"pod"`
	Node       string     `json:"node"`
	Client     netip.Addr `json:"client"`
	ClientPort uint16     `json:"clientPort"`
	Local      netip.Addr `json:"local"`
	LocalPort  uint16     `json:"localPort"`
}

// tick is a line of GET /tick.
type tick struct {
	Tick int    `json:"tick"`
	Pod  string `json:"pod"`
	stamp
}

// event is a line of the server's log.
type event struct {
	Event  string `json:"event"`
	Pod    string `json:"pod"`
	Detail string `json:"detail,omitempty"`
	stamp
}

// server answers until its context ends: then it is not ready, lingers, stops
// listening, lets requests end and returns. Each step is logged. Datagrams to the
// same port go back to their senders as long.
type server struct {
	pod, node string
	unready   string        // file
	linger    time.Duration // of serving after the context has ended
	log       func(any)

	// The readiness set by POST /ready, and whether the context has ended. The file counts
	// in addition.
	ready, ending atomic.Bool
	// started is handed the listener's address (tests listen on port 0).
	started func(net.Addr)
}

func (s *server) serve(ctx context.Context, listen string) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	datagrams, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(l.Addr().(*net.TCPAddr).AddrPort()))
	if err != nil {
		return errors.Join(err, l.Close())
	}
	s.ready.Store(true)
	s.event("listening", l.Addr().String())
	if s.started != nil {
		s.started(l.Addr())
	}

	streams, endStreams := context.WithCancel(context.Background())
	defer endStreams()
	h := &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return streams },
	}
	served := make(chan error, 1)
	go func() { served <- h.Serve(l) }()
	sentBack := make(chan error, 1)
	go func() { sentBack <- sendBack(streams, datagrams) }()

	select {
	case err := <-served:
		return err
	case err := <-sentBack:
		return err
	case <-ctx.Done():
	}
	s.ending.Store(true)
	s.event("terminating", "")
	select {
	case err := <-served:
		return err
	case <-time.After(s.linger):
	}
	s.event("closing", "")
	endStreams()
	grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err = errors.Join(h.Shutdown(grace), <-sentBack)
	<-served
	s.event("ended", "")
	return err
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.who)
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.HandleFunc("POST /ready", s.setReady)
	mux.HandleFunc("GET /tick", s.tick)
	return mux
}

func (s *server) who(w http.ResponseWriter, r *http.Request) {
	client, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	local := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr).AddrPort()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer{
		Pod: s.pod, Node: s.node,
		Client: client.Addr().Unmap(), ClientPort: client.Port(),
		Local: local.Addr().Unmap(), LocalPort: local.Port(),
	})
}

// readyz is the readiness probe: all that may speak against it is asked.
func (s *server) readyz(w http.ResponseWriter, _ *http.Request) {
	_, err := os.Stat(s.unready)
	switch {
	case s.ending.Load():
		http.Error(w, "not ready: terminating", http.StatusServiceUnavailable)
	case !s.ready.Load():
		http.Error(w, "not ready: POST /ready?ok=false", http.StatusServiceUnavailable)
	case err == nil:
		http.Error(w, "not ready: "+s.unready+" exists", http.StatusServiceUnavailable)
	default:
		fmt.Fprintln(w, "ready")
	}
}

func (s *server) setReady(w http.ResponseWriter, r *http.Request) {
	ok, err := strconv.ParseBool(r.URL.Query().Get("ok"))
	if err != nil {
		http.Error(w, fmt.Sprintf("ok=%q: want true or false", r.URL.Query().Get("ok")), http.StatusBadRequest)
		return
	}
	s.ready.Store(ok)
	s.event("ready", strconv.FormatBool(ok))
	w.WriteHeader(http.StatusNoContent)
}

// tick keeps a connection busy: a line at once, then one every interval
// (?interval=100ms, 1 s by default) until one of the two sides ends.
func (s *server) tick(w http.ResponseWriter, r *http.Request) {
	interval := time.Second
	if v := r.URL.Query().Get("interval"); v != "" {
		var err error
		if interval, err = time.ParseDuration(v); err != nil || interval < time.Millisecond {
			http.Error(w, fmt.Sprintf("interval=%q: want a duration of 1ms or more, as in 100ms", v), http.StatusBadRequest)
			return
		}
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc, flush := json.NewEncoder(w), http.NewResponseController(w)
	every := time.NewTicker(interval)
	defer every.Stop()
	for n := 0; ; n++ {
		if err := errors.Join(enc.Encode(tick{Tick: n, Pod: s.pod, stamp: now()}), flush.Flush()); err != nil {
			return
		}
		select {
		case <-every.C:
		case <-r.Context().Done():
			return
		}
	}
}

func (s *server) event(name, detail string) {
	s.log(event{Event: name, Pod: s.pod, Detail: detail, stamp: now()})
}
