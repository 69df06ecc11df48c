package main

import (
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

func TestAsk(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "health.sock")
	if _, err := ask(socket, "/healthz"); err == nil {
		t.Error("an agent that is not there is healthy")
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no NodeConfig", http.StatusServiceUnavailable)
	})
	server := &http.Server{Handler: mux}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	for _, c := range []struct{ path, body, problem string }{
		{"/healthz", "ok\n", ""},
		{"/readyz", "no NodeConfig\n", "503"},
		{"/other", "404 page not found\n", "404"},
	} {
		body, err := ask(socket, c.path)
		if body != c.body || (err == nil) != (c.problem == "") || err != nil && !strings.Contains(err.Error(), c.problem) {
			t.Errorf("%s: %q, %v; want %q and an error with %q", c.path, body, err, c.body, c.problem)
		}
	}
}
