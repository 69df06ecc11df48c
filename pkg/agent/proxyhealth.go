//go:build linux

package agent

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// proxySilence is for how long kube-proxy may not answer. While it does not run, its rules stay in
// force, and are right until endpoints change: so a restart of it withdraws nothing. After that
// they lead to pods that are gone.
const proxySilence = time.Minute

// proxyHealth judges kube-proxy by what its health check answers.
type proxyHealth struct {
	url    string
	heard  bool      // it has answered, and nothing says since that its health check is off or elsewhere
	fault  string    // what it answered last
	silent time.Time // since when it does not answer; zero: it does
}

// take takes in an answer, or why there was none, and when kube-proxy last wrote rules. It says
// what is wrong with kube-proxy; empty if nothing is.
func (h *proxyHealth) take(now time.Time, fault string, err error, wrote time.Time) string {
	if err == nil {
		h.heard, h.fault, h.silent = true, fault, time.Time{}
		return fault
	}
	if h.silent.IsZero() {
		h.silent = now
	}
	if wrote.After(h.silent) { // it runs, and was started with another address of its health check, say
		h.heard, h.fault = false, ""
	}
	if !h.heard || now.Sub(h.silent) < proxySilence {
		return h.fault
	}
	return fmt.Sprintf("%s has not answered since %s", h.url, h.silent.UTC().Format(time.RFC3339))
}

// askProxy returns what is wrong with kube-proxy by its own word, empty if nothing is; or why it
// does not answer.
func askProxy(ctx context.Context, client *http.Client, url string) (fault string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusServiceUnavailable {
		return "", nil
	}
	body, _ := io.ReadAll(io.LimitReader(response.Body, 256))
	return fmt.Sprintf("%s answers %s: %s", url, response.Status, strings.TrimSpace(string(body))), nil
}
