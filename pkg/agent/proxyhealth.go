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
	proxySeen
	silent time.Time // since when it does not answer; zero: it does
}

// proxySeen is what was seen of kube-proxy, by this run of the agent and earlier ones since the boot.
// A kube-proxy that does not answer says nothing by itself: there may be none, or its health check
// may be off or at another address. It counts if it has answered before, and was not started since.
type proxySeen struct {
	URL string `json:"url"` // that was asked
	// Answered: it has answered, and nothing says since that its health check is off or elsewhere.
	Answered bool   `json:"answered"`
	Fault    string `json:"fault,omitempty"` // what it answered last
	// Silent is since when it does not answer, once that is a fault.
	Silent time.Time `json:"silent,omitzero"`
	// Epoch is kube-proxy's when it was seen last ([proxy.Reader.Epoch]).
	Epoch string `json:"epoch,omitempty"`
}

// resume goes on from what an earlier run has seen; nil: nothing. Epoch is kube-proxy's now, empty
// if the kernel does not say.
func resume(url string, seen *proxySeen, now time.Time, epoch string, err error) *proxyHealth {
	if seen == nil || seen.URL != url || err == nil && seen.Epoch != epoch {
		return &proxyHealth{proxySeen: proxySeen{URL: url}}
	}
	h := &proxyHealth{proxySeen: *seen, silent: seen.Silent}
	if latest := now.Add(-proxySilence); h.silent.After(latest) { // the clock was set back
		h.silent = latest
	}
	return h
}

// take takes in an answer, or why there was none, and kube-proxy's epoch, or why it is not known. It
// says what is wrong with kube-proxy; empty if nothing is.
func (h *proxyHealth) take(now time.Time, fault string, silence error, epoch string, unknown error) string {
	if unknown != nil {
		epoch = h.Epoch
	}
	switch {
	case silence == nil:
		h.Answered, h.Fault, h.Silent, h.silent = true, fault, time.Time{}, time.Time{}
	case h.Epoch != epoch: // it was started since, with another address of its health check, say
		h.Answered, h.Fault, h.Silent, h.silent = false, "", time.Time{}, time.Time{}
	case h.silent.IsZero():
		h.silent = now
	case h.Answered && now.Sub(h.silent) >= proxySilence:
		h.Silent = h.silent
	}
	h.Epoch = epoch
	return h.verdict()
}

// verdict says what is wrong with kube-proxy; empty if nothing is.
func (h *proxyHealth) verdict() string {
	if h.Silent.IsZero() {
		return h.Fault
	}
	return fmt.Sprintf("%s has not answered since %s", h.URL, h.silent.UTC().Format(time.RFC3339))
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
