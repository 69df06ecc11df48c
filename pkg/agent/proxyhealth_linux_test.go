package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// kube-proxy that has answered and does not any more is at fault after a minute: a restart is
// shorter. One that never answered may have no health check, and one that was started since, which
// is another epoch, may have it at another address. A restart of the agent changes none of it.
func TestProxyHealth(t *testing.T) {
	t.Parallel()
	refused, unreadable := errors.New("connection refused"), errors.New("no buffer space")
	type answer struct {
		at    int // seconds
		fault string
		err   error
		epoch string
	}
	silentSince := func(second int) string {
		return fmt.Sprintf("http://proxy/healthz has not answered since 1970-01-01T00:%02d:%02dZ", second/60, second%60)
	}
	for _, tc := range []struct {
		name    string
		answers []answer
		want    string
	}{
		{"well", []answer{{0, "", nil, "1"}}, ""},
		{"by its own word", []answer{{0, "503", nil, "1"}}, "503"},
		{"it never answered", []answer{{0, "", refused, "1"}, {300, "", refused, "1"}, {600, "", refused, "1"}}, ""},
		{"it is started again", []answer{{0, "", nil, "1"}, {5, "", refused, "1"}, {64, "", refused, "1"}}, ""},
		{"it does not run", []answer{{0, "", nil, "1"}, {5, "", refused, "1"}, {65, "", refused, "1"}, {70, "", refused, "1"}}, silentSince(5)},
		{"it does not run, for a minute now", []answer{{0, "", nil, "1"}, {5, "", refused, "1"}, {65, "", refused, "1"}}, silentSince(5)},
		{"it answers again", []answer{{0, "", nil, "1"}, {5, "", refused, "1"}, {65, "", refused, "1"}, {70, "", nil, "2"}}, ""},
		{"it answers now and then", []answer{{0, "", nil, "1"}, {5, "", refused, "1"}, {60, "", nil, "1"}, {65, "", refused, "1"}, {70, "", refused, "1"}}, ""},
		{"it was unhealthy, and does not answer", []answer{{0, "503", nil, "1"}, {5, "", refused, "1"}}, "503"},
		{"it was unhealthy, and is started again", []answer{{0, "503", nil, "1"}, {5, "", refused, "2"}, {10, "", nil, "2"}}, ""},
		{"it has been started before it ended", []answer{{0, "", nil, "1"}, {4, "", nil, "2"}, {5, "", refused, "2"}, {65, "", refused, "2"}, {66, "", refused, "2"}}, silentSince(5)},
		{"it is started again with another address", []answer{{0, "", nil, "1"}, {5, "", refused, "1"}, {10, "", refused, "2"}, {600, "", refused, "2"}}, ""},
		{"that takes less than the time between two questions", []answer{{0, "", nil, "1"}, {5, "", refused, "2"}, {600, "", refused, "2"}, {700, "", refused, "2"}}, ""},
		{"it was unhealthy, and is started again with another address", []answer{{0, "503", nil, "1"}, {5, "", refused, "1"}, {10, "", refused, "2"}}, ""},
		{"it did not run for long, and is started again with another address", []answer{{0, "", nil, "1"}, {5, "", refused, "1"}, {65, "", refused, "1"}, {70, "", refused, "2"}, {600, "", refused, "2"}}, ""},
		{"it ends after that", []answer{{0, "", nil, "1"}, {5, "", refused, "2"}, {10, "", nil, "2"}, {20, "", refused, "2"}, {80, "", refused, "2"}, {81, "", refused, "2"}}, silentSince(20)},
		{"its rules cannot be read", []answer{{0, "", nil, "1"}, {5, "", refused, "1"}, {65, "", refused, "1"}, {70, "", refused, "?"}}, silentSince(5)},
		{"the node was asleep", []answer{{0, "", nil, "1"}, {3600, "", refused, "1"}}, ""},
	} {
		for restart := range len(tc.answers) + 1 { // before which answer; after the last one: there is none
			fresh := false // the minute began with the restart, and is not over
			h, got := resume("http://proxy/healthz", nil, time.Time{}, "", nil), ""
			for i, a := range tc.answers {
				now := time.Unix(int64(a.at), 0)
				epoch, unknown := a.epoch, error(nil)
				if epoch == "?" {
					epoch, unknown = "", unreadable
				}
				if i == restart {
					fresh = got == "" && tc.answers[len(tc.answers)-1].at-a.at < 60
					b, err := json.Marshal(h.proxySeen)
					if err != nil {
						t.Fatal(err)
					}
					var seen proxySeen
					if err := json.Unmarshal(b, &seen); err != nil {
						t.Fatal(err)
					}
					h = resume("http://proxy/healthz", &seen, now, epoch, unknown)
					if was, is := got, h.verdict(); is != was && (unknown != nil || epoch == tc.answers[max(i-1, 0)].epoch) {
						t.Errorf("%s: %q after a restart before answer %d, %q before it", tc.name, is, i, was)
					}
				}
				got = h.take(now, a.fault, a.err, epoch, unknown)
			}
			if got != tc.want && !(fresh && got == "") {
				t.Errorf("%s, restart before answer %d: %q, want %q", tc.name, restart, got, tc.want)
			}
		}
	}
}

// What was seen of one address says nothing of another, and a clock that was set back does not make
// a node fit.
func TestProxyHealthResumes(t *testing.T) {
	t.Parallel()
	refused := errors.New("connection refused")
	seen := &proxySeen{URL: "http://old/healthz", Answered: true, Silent: time.Unix(1000, 0), Epoch: "1"}
	for _, tc := range []struct {
		name, url, epoch string
		now              int64
		want             string
	}{
		{"the same", "http://old/healthz", "1", 2000, "http://old/healthz has not answered since 1970-01-01T00:16:40Z"},
		{"another address", "http://new/healthz", "1", 2000, ""},
		{"it was started", "http://old/healthz", "2", 2000, ""},
		{"its rules are gone", "http://old/healthz", "", 2000, ""},
		{"the clock was set back", "http://old/healthz", "1", 500, "http://old/healthz has not answered since 1970-01-01T00:07:20Z"},
	} {
		h := resume(tc.url, seen, time.Unix(tc.now, 0), tc.epoch, nil)
		if got := h.verdict(); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
		if got := h.take(time.Unix(tc.now+100, 0), "", refused, tc.epoch, nil); got != tc.want {
			t.Errorf("%s, and later: %q, want %q", tc.name, got, tc.want)
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
