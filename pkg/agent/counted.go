//go:build linux

package agent

import (
	"net/http"

	"flock.fritzlab.net/flock/internal/sys"
)

// counted has package sys know of requests to the API server, where calls can fail at will.
type counted struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (c counted) RoundTrip(r *http.Request) (*http.Response, error) {
	isChange := r.Method != http.MethodGet
	if err := sys.Request(isChange, r.Method+" "+r.URL.Path); err != nil {
		return nil, err
	}
	answer, err := c.RoundTripper.RoundTrip(r)
	if isChange && err == nil {
		sys.Step("answered", r.URL.Path)
	}
	return answer, err
}
