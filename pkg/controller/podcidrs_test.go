package controller

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path"
	"testing"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/kube"
)

// statuses is an API server that has the overlaps of NodeConfigs, or refuses them.
type statuses struct {
	refuse map[string]int // codes, by the NodeConfig's name
	has    map[string][]v1alpha1.PodCIDROverlap
	n      int
}

func (s *statuses) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	s.n++
	name := path.Base(path.Dir(r.URL.Path)) // …/NAME/status
	if code := s.refuse[name]; code != 0 {
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"apiVersion":"v1","kind":"Status","status":"Failure","code":%d,"reason":%q,"message":"refused"}`, code, map[int]string{http.StatusConflict: "Conflict", http.StatusForbidden: "Forbidden"}[code])
		return
	}
	var patch struct {
		Status struct {
			PodCIDROverlaps []v1alpha1.PodCIDROverlap `json:"podCIDROverlaps"`
		} `json:"status"`
	}
	if err := json.NewDecoder(r.Body).Decode(&patch); err != nil {
		panic(err)
	}
	s.has[name] = patch.Status.PodCIDROverlaps
	fmt.Fprint(w, `{"apiVersion":"flock.fritzlab.net/v1alpha1","kind":"NodeConfig"}`)
}

// Each node that has CIDRs of another learns of it, once, and the others cost nothing. One whose
// status cannot be written holds up no other, and is tried again.
func TestPodCIDROverlaps(t *testing.T) {
	t.Parallel()
	server := &statuses{refuse: map[string]int{}, has: map[string][]v1alpha1.PodCIDROverlap{}}
	s := httptest.NewServer(server)
	defer s.Close()
	api, err := kube.NewClient(&rest.Config{Host: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	p := &podCIDRs{api: api, log: slog.New(slog.DiscardHandler), metrics: newMetrics(), found: map[types.UID]*written[[]v1alpha1.PodCIDROverlap]{}}
	config := func(name, cidr string) *v1alpha1.NodeConfig {
		nc := &v1alpha1.NodeConfig{}
		nc.Name, nc.UID = name, types.UID(name)
		nc.Spec.PodCIDRs.IPv4 = []v1alpha1.CIDR{v1alpha1.CIDR(cidr)}
		return nc
	}
	a, b, c := config("a", "10.1.0.0/16"), config("b", "10.1.2.0/24"), config("c", "10.2.0.0/24")
	pass := func(step string, writes, overlapping int, want string, configs ...*v1alpha1.NodeConfig) {
		t.Helper()
		before := server.n
		err := p.pass(t.Context(), configs, func(string) []string { return nil })
		got := fmt.Sprintf("%v %v", server.has, err)
		if got != want || server.n-before != writes || p.metrics.overlapping.Load() != int64(overlapping) {
			t.Errorf("%s: %d writes, %d overlapping, %s\nwant %d, %d, %s", step, server.n-before, p.metrics.overlapping.Load(), got, writes, overlapping, want)
		}
	}
	both := "map[a:[{10.1.0.0/16 b 10.1.2.0/24}] b:[{10.1.2.0/24 a 10.1.0.0/16}]] <nil>"
	server.refuse = map[string]int{"a": http.StatusForbidden}
	pass("refused", 2, 2, `map[b:[{10.1.2.0/24 a 10.1.0.0/16}]] NodeConfig a: refused`, a, b, c)
	server.refuse = map[string]int{"a": http.StatusConflict} // it was deleted and made again
	pass("another object", 1, 2, `map[b:[{10.1.2.0/24 a 10.1.0.0/16}]] <nil>`, a, b, c)
	server.refuse = nil
	pass("tried again", 1, 2, both, a, b, c)
	pass("the cache does not have it yet", 0, 2, both, a, b, c)
	a.Status.PodCIDROverlaps, b.Status.PodCIDROverlaps = server.has["a"], server.has["b"]
	pass("the cache has it", 0, 2, both, a, b, c)
	lost := config("a", "10.1.0.0/16")
	pass("somebody has taken it away", 1, 2, both, lost, b, c)
	b.Spec.PodCIDRs.IPv4[0] = "10.3.0.0/24"
	lost.Status = a.Status
	pass("no more", 2, 0, "map[a:[] b:[]] <nil>", lost, b, c)
	pass("all are deleted", 0, 0, "map[a:[] b:[]] <nil>")
	if len(p.found) != 0 {
		t.Errorf("it remembers %v", p.found)
	}
}
