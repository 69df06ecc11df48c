package policy_test

import (
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"flock.fritzlab.net/flock/internal/journal"
	"flock.fritzlab.net/flock/pkg/datapath/policy"
)

// unlabeled is what an agent that starts knows of a pod before any source has reported it.
func unlabeled(p policy.Pod) policy.Pod {
	p.Labels, p.Version, p.Ports, p.Finished = nil, 0, nil, false
	return p
}

// restart is a start on what the last agent has left, while nobody reports the node's pods.
func (r *rig) restart(pods ...policy.Pod) {
	r.t.Helper()
	r.away(true)
	r.start()
	for _, p := range pods {
		r.e.SetUnlabeled(unlabeled(p))
	}
	r.complete()
}

// waits fails the test unless nothing is changed in the kernel.
func (r *rig) waits(what string) {
	r.t.Helper()
	time.Sleep(time.Minute)
	r.table.mu.Lock()
	defer r.table.mu.Unlock()
	if r.table.ruleset != nil {
		r.t.Errorf("%s: the table is changed though labels are not known", what)
	}
	if s := r.e.Status(); !strings.Contains(s.Missing, "labels") {
		r.t.Errorf("%s: status %+v", what, s)
	}
}

// A start while neither the kubelet nor the API server answers enforces what was last known of the same
// attachments, and of no others.
func TestKnowsTheLabelsOfItsPods(t *testing.T) {
	for what, change := range map[string]func(*policy.Pod){
		"the same":                           func(*policy.Pod) {},
		"its record was rebuilt":             func(p *policy.Pod) { p.UID = "" },
		"other: UID":                         func(p *policy.Pod) { p.UID = "new" },
		"other: container":                   func(p *policy.Pod) { p.Links = []string{"flock2"} },
		"other: one container more":          func(p *policy.Pod) { p.Links = []string{"flock1", "flock2"} },
		"other: name":                        func(p *policy.Pod) { p.Name = "db" },
		"other: namespace":                   func(p *policy.Pod) { p.Namespace = "bank" },
		"other: container, record rebuilt":   func(p *policy.Pod) { p.UID, p.Links = "", []string{"flock2"} },
		"other: one that was never reported": func(p *policy.Pod) { p.Name, p.UID, p.Links = "new", "new", []string{"flock3"} },
	} {
		t.Run(what, func(t *testing.T) {
			inRig(t, func(r *rig) {
				r.web.Ports = []policy.NamedPort{{Name: "http", Protocol: corev1.ProtocolTCP, Number: 80}}
				r.policies.Add(ingressPolicy("deny", "web", ""))
				r.complete()
				r.e.Set(r.web)
				r.wantPasses("10.1.0.2", false)
				p := r.web
				change(&p)
				for range 2 {
					r.stop()
					r.restart(p)
					if strings.HasPrefix(what, "other") {
						r.waits(what)
						continue
					}
					r.wantPasses("10.1.0.2", false)
					if s := r.e.Status(); s.Missing != "" {
						t.Errorf("status %+v", s)
					}
				}
				// Whatever is reported wins.
				p.Labels = map[string]string{"app": "other"}
				r.e.Set(p)
				r.wantPasses("10.1.0.2", true)
				r.stop()
				r.restart(p)
				r.wantPasses("10.1.0.2", true)
			})
		})
	}
}

// Labels that the API server reports win over kept ones, though the kubelet does not answer.
func TestReportedLabelsWin(t *testing.T) {
	inRig(t, func(r *rig) {
		r.policies.Add(ingressPolicy("deny", "web", ""))
		r.complete()
		r.web.Version = 7
		r.e.Set(r.web)
		r.wantPasses("10.1.0.2", false)
		r.stop()
		r.restart(r.web)
		r.wantPasses("10.1.0.2", false)
		r.nodePods.Add(apiPod("web", "web", "other", "10.1.0.1")) // of whatever version
		r.away(false)
		time.Sleep(time.Minute)
		r.wantPasses("10.1.0.2", true)
		r.stop()
		r.restart(r.web) // and they are kept
		r.wantPasses("10.1.0.2", true)
	})
}

// All pods of the start must be known, and one that ends meanwhile is none.
func TestAllPodsOfTheStart(t *testing.T) {
	inRig(t, func(r *rig) {
		other := policy.Pod{Namespace: "shop", Name: "db", UID: "db", Links: []string{"flock2"}}
		r.policies.Add(ingressPolicy("deny", "web", ""))
		r.complete()
		r.e.Set(r.web)
		synctest.Wait()
		r.stop()
		r.restart(r.web, other)
		r.waits("one is not known")
		r.e.Delete("shop", "db", "db")
		r.wantPasses("10.1.0.2", false)

		// A record that was rebuilt belongs to the pod that a source reports.
		r.stop()
		nameless := other
		nameless.UID = ""
		r.restart(r.web, nameless)
		r.waits("one is not known")
		r.e.Identify("shop", "db", "db")
		r.waits("it has a UID, and no labels")
		r.e.Set(other)
		r.wantPasses("10.1.0.2", false)
	})
}

// The file has the pods that run, once each, and nothing of a report that says nothing new.
func TestFileOfLocalPods(t *testing.T) {
	inRig(t, func(r *rig) {
		inFile := func() (found []string) {
			t.Helper()
			r.stop()
			j, err := journal.Open(r.file, func(key string, value []byte) {
				if strings.HasPrefix(key, "localpods/") {
					found = append(found, key+" "+string(value))
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			j.Close()
			return found
		}
		size := func() int64 {
			t.Helper()
			synctest.Wait()
			info, err := os.Stat(r.file)
			if err != nil {
				t.Fatal(err)
			}
			return info.Size()
		}
		r.policies.Add(ingressPolicy("deny", "web", ""))
		r.complete()
		gone := policy.Pod{Namespace: "shop", Name: "gone", UID: "gone", Links: []string{"flock2"}}
		deleted := policy.Pod{Namespace: "shop", Name: "deleted", UID: "deleted", Links: []string{"flock3"}}
		for _, p := range []policy.Pod{r.web, gone, deleted} {
			r.e.Set(p)
		}
		r.e.Delete("shop", "deleted", "deleted")
		before := size()
		for range 100 {
			r.web.Version++ // a change of its status
			r.e.Set(r.web)
			synctest.Wait()
		}
		if got := size(); got != before {
			t.Errorf("100 reports of the same labels: %d bytes more", got-before)
		}
		want := `localpods/shop/web/web {"links":["flock1"],"labels":{"app":"web"}}`
		if got := inFile(); len(got) != 2 || got[0] != want && got[1] != want {
			t.Errorf("the file has %q", got)
		}
		r.restart(r.web) // the other one has ended while there was no agent
		synctest.Wait()
		if got := inFile(); len(got) != 1 || got[0] != want {
			t.Errorf("the file has %q, want %s", got, want)
		}

		// What cannot be read is not known, and kinds of other releases are passed over.
		j, err := journal.Open(r.file, func(string, []byte) {})
		if err != nil {
			t.Fatal(err)
		}
		j.Put("localpods/shop/web/web", []byte(`{"links":`))
		j.Put("kindofalaterrelease/shop/web", []byte("x"))
		if err := j.Flush(); err != nil {
			t.Fatal(err)
		}
		j.Close()
		r.restart(r.web)
		r.waits("the value is damaged")
		r.e.Set(r.web)
		r.wantPasses("10.1.0.2", false)
		r.stop()
		r.restart(r.web)
		r.wantPasses("10.1.0.2", false)
	})
}
