//go:build apiserver

package kube

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/pkg/scrape"
)

// metricsReaders: with the rights of deploy/, an agent learns from the API server who may
// read its metrics.
func metricsReaders(t *testing.T, s *server) {
	s.Kubectl("", "create", "namespace", "monitoring")
	token := func(name string) string {
		s.Kubectl("", "--namespace=monitoring", "create", "serviceaccount", name)
		return strings.TrimSpace(s.Kubectl("", "--namespace=monitoring", "create", "token", name))
	}
	prometheus, other := token("prometheus"), token("other")
	s.Kubectl("", "create", "clusterrolebinding", "flock-metrics", "--clusterrole=flock-metrics", "--serviceaccount=monitoring:prometheus")
	h := scrape.NewGuard(s.claims(t, "node1"), slog.New(slog.DiscardHandler)).Protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for _, c := range []struct {
		name, token, path string
		want              int
		says              string
	}{
		{"Prometheus", prometheus, "/metrics", http.StatusOK, ""},
		{"Prometheus elsewhere", prometheus, "/debug/pprof", http.StatusForbidden, "/debug/pprof"},
		{"another", other, "/metrics", http.StatusForbidden, "system:serviceaccount:monitoring:other may not get"},
		{"a forgery", prometheus[:len(prometheus)-8] + "AAAAAAAA", "/metrics", http.StatusUnauthorized, "does not know this token"},
	} {
		r := httptest.NewRequest("GET", c.path, nil)
		r.Header.Set("Authorization", "Bearer "+c.token)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.want || !strings.Contains(w.Body.String(), c.says) {
			t.Errorf("%s: %d %s, want %d %s", c.name, w.Code, w.Body, c.want, c.says)
		}
	}
}
