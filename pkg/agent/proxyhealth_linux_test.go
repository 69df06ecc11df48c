package agent

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// kube-proxy that has answered and does not any more is at fault after a minute: a restart is
// shorter. One that never answered may have no health check.
func TestProxyHealth(t *testing.T) {
	refused := errors.New("connection refused")
	type answer struct {
		at    int // seconds
		fault string
		err   error
		wrote int // seconds; 0: never
	}
	at := func(seconds int) time.Time { return time.Unix(int64(seconds), 0) }
	for _, tc := range []struct {
		name    string
		answers []answer
		want    string
	}{
		{"well", []answer{{0, "", nil, 0}}, ""},
		{"by its own word", []answer{{0, "503", nil, 0}}, "503"},
		{"it never answered", []answer{{0, "", refused, 0}, {600, "", refused, 0}}, ""},
		{"it is started again", []answer{{0, "", nil, 0}, {5, "", refused, 0}, {64, "", refused, 0}}, ""},
		{"it does not run", []answer{{0, "", nil, 0}, {5, "", refused, 0}, {65, "", refused, 0}}, "http://proxy/healthz has not answered since 1970-01-01T00:00:05Z"},
		{"it answers again", []answer{{0, "", nil, 0}, {5, "", refused, 0}, {65, "", refused, 0}, {70, "", nil, 0}}, ""},
		{"it answers now and then", []answer{{0, "", nil, 0}, {5, "", refused, 0}, {60, "", nil, 0}, {65, "", refused, 0}, {70, "", refused, 0}}, ""},
		{"it was unhealthy, and does not answer", []answer{{0, "503", nil, 0}, {5, "", refused, 0}}, "503"},
		{"it was unhealthy, and is started again", []answer{{0, "503", nil, 0}, {5, "", refused, 0}, {10, "", nil, 0}}, ""},
		{"it wrote rules before it ended", []answer{{0, "", nil, 0}, {5, "", refused, 4}, {65, "", refused, 4}}, "http://proxy/healthz has not answered since 1970-01-01T00:00:05Z"},
		{"it is started again with another address", []answer{{0, "", nil, 0}, {5, "", refused, 0}, {10, "", refused, 7}, {600, "", refused, 7}}, ""},
		{"it was unhealthy, and is started again with another address", []answer{{0, "503", nil, 0}, {5, "", refused, 0}, {10, "", refused, 7}}, ""},
		{"it ends after that", []answer{{0, "", nil, 0}, {5, "", refused, 7}, {10, "", nil, 7}, {20, "", refused, 7}, {80, "", refused, 7}}, "http://proxy/healthz has not answered since 1970-01-01T00:00:20Z"},
		{"the node was asleep", []answer{{0, "", nil, 0}, {3600, "", refused, 0}}, ""},
	} {
		h, got := proxyHealth{url: "http://proxy/healthz"}, ""
		for _, a := range tc.answers {
			got = h.take(at(a.at), a.fault, a.err, at(a.wrote))
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestAskProxy(t *testing.T) {
	code := http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "lastUpdated", code) }))
	ask := func() (string, error) { return askProxy(t.Context(), server.Client(), server.URL) }
	if fault, err := ask(); fault != "" || err != nil {
		t.Errorf("%q, %v, want that it is well", fault, err)
	}
	code = http.StatusServiceUnavailable
	if fault, err := ask(); !strings.Contains(fault, "503") || !strings.Contains(fault, "lastUpdated") || err != nil {
		t.Errorf("%q, %v, want that it says 503 and why", fault, err)
	}
	server.Close()
	if fault, err := ask(); fault != "" || err == nil {
		t.Errorf("%q, %v, want that it does not answer", fault, err)
	}
}
