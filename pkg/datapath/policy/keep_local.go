package policy

import (
	"encoding/json"
	"hash/maphash"
	"maps"
	"slices"
	"strings"
)

// localPodsKind is what the file has of this node's own pods: how policies see them, for a start
// while neither the kubelet nor the API server answers. An earlier release passes it over.
const localPodsKind = "localpods"

// A keptPod is for the attachments that have these links, and no others: a link's name follows from
// the container's ID. The version of the labels is not kept, for it changes with each report: whatever
// is reported counts as later.
type keptPod struct {
	Links    []string          `json:"links"`
	Labels   map[string]string `json:"labels,omitempty"`
	Ports    []NamedPort       `json:"ports,omitempty"`
	Finished bool              `json:"finished,omitempty"`
}

// kept is what is known of the file's pods of this node.
type kept struct {
	pods map[podKey]keptPod // as the file had them; empty once all pods of the start are known
	sums map[podKey]uint64  // of what the file has
}

func (k podKey) inFile() string {
	return strings.Join([]string{localPodsKind, k.namespace, k.name, k.uid}, "/")
}

// loadLocal takes in what the file has of a pod of this node.
func (e *Enforcer) loadLocal(key string, value []byte) {
	parts := strings.Split(key, "/")
	var k keptPod
	if err := json.Unmarshal(value, &k); err != nil || len(parts) != 4 {
		e.c.Log.Warn("cannot read the cached labels of a pod; waiting for the kubelet or the API server", "key", key, "error", err)
		return
	}
	pod := podKey{parts[1], parts[2], parts[3]}
	e.kept.pods[pod], e.kept.sums[pod] = k, maphash.Bytes(seed, value)
}

// recall gives those of this node's pods that no source has reported the labels that the file has of
// them, and has the file have all others.
func (e *Enforcer) recall() {
	for _, p := range slices.Collect(maps.Values(e.unlabeled)) {
		e.setUnlabeled(p)
	}
	for key := range e.localPods {
		e.recordLocal(key)
	}
}

// lookUp finds what the file has of the attachments of a pod. A pod of the same name with other
// attachments, or another UID, is another pod.
func (e *Enforcer) lookUp(p Pod) (keptPod, bool) {
	has := func(k keptPod) bool {
		return !slices.ContainsFunc(p.Links, func(link string) bool { return !slices.Contains(k.Links, link) })
	}
	if k, ok := e.kept.pods[podKey{p.Namespace, p.Name, p.UID}]; ok || p.UID != "" {
		return k, ok && has(k)
	}
	// Its record was rebuilt, without a UID.
	for key, k := range e.kept.pods {
		if key.namespace == p.Namespace && key.name == p.Name && has(k) {
			return k, true
		}
	}
	return keptPod{}, false
}

// setUnlabeled takes in a pod of which no source has reported labels.
func (e *Enforcer) setUnlabeled(p Pod) {
	key := podKey{p.Namespace, p.Name, p.UID}
	k, ok := e.lookUp(p)
	if !ok || len(p.Links) == 0 {
		e.unlabeled[key] = p
		return
	}
	p.Labels, p.Version, p.Ports, p.Finished = k.Labels, 0, k.Ports, k.Finished
	e.setLocal(p)
}

// recordLocal puts what is known of a pod of this node into the file, with the next flush, if the file
// has something else. Labels change rarely, so that most reports of a pod cost nothing.
func (e *Enforcer) recordLocal(key podKey) {
	if e.journal == nil {
		return
	}
	p := e.relabeled(e.localPods[key])
	b, err := json.Marshal(keptPod{p.Links, p.Labels, p.Ports, p.Finished})
	if err != nil {
		e.c.Log.Error("cannot cache the labels of a pod for the next start of the agent", "namespace", key.namespace, "name", key.name, "error", err)
		return
	}
	sum := maphash.Bytes(seed, b)
	if was, there := e.kept.sums[key]; there && was == sum {
		return
	}
	e.kept.sums[key] = sum
	e.journal.Put(key.inFile(), b)
}

// dropLocal takes a pod of this node out of the file.
func (e *Enforcer) dropLocal(key podKey) {
	delete(e.kept.pods, key)
	if _, there := e.kept.sums[key]; there && e.journal != nil {
		delete(e.kept.sums, key)
		e.journal.Delete(key.inFile())
	}
}

// localKnown says whether all pods are known that this node had when the agent started.
func (e *Enforcer) localKnown() bool {
	if !e.complete || len(e.unlabeled) > 0 {
		return false
	}
	if e.journal != nil && len(e.kept.pods) > 0 {
		for key := range e.kept.sums {
			if _, runs := e.localPods[key]; !runs { // it ended while there was no agent
				e.dropLocal(key)
			}
		}
		clear(e.kept.pods)
	}
	return true
}
