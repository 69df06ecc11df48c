// Package support says what flock needs of a node's kernel, container runtime and
// kubelet, of the API server and of BIRD, and what of it is missing. Versions are judged
// by what they say of themselves. The kernel is tried: each feature is used in a network
// namespace of its own, since distributions leave features out of new kernels and bring
// them to old ones. It changes nothing. docs/supported.md has the versions.
package support

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// Finding is something that is missing.
type Finding struct {
	// Breaks: flock does not work without it. Else it works less well.
	Breaks bool
	// Object is what was looked at, and Found what it is.
	Object, Found string
	// Needed is what it should be, Without what follows, and Remedy what to do.
	Needed, Without, Remedy string
}

func (f Finding) String() string {
	return fmt.Sprintf("%s: found %s, needed is %s: without it, %s; %s", f.Object, f.Found, f.Needed, f.Without, f.Remedy)
}

// The oldest versions with everything that flock needs, and the newest features that it
// uses where they are. Those that the tests run with are in docs/supported.md.
const (
	oldestKernel     = "5.7"
	resilientKernel  = "5.13"
	oldestKubernetes = "1.32"
	podsAPI          = "1.37"
	oldestContainerd = "1.6"
	eventsContainerd = "1.7"
	statusContainerd = "2.0"
	oldestCRIO       = "1.20"
	oldestBIRD       = "2.0.12"
	silentBIRD       = "3"
)

// Node judges what a Node says of itself (status.nodeInfo), as kubectl get nodes -o wide
// shows it: the release of its kernel, its runtime ("containerd://2.4.2") and the version
// of its kubelet. What is empty is not judged.
func Node(kernel, runtime, kubelet string) (all []Finding) {
	if older(kernel, oldestKernel) {
		all = append(all, Finding{
			Breaks: true, Object: "kernel", Found: "Linux " + kernel, Needed: "Linux " + oldestKernel + " or newer",
			Without: "pods get no source guard, and the agent does not start", Remedy: "run a newer kernel on the node",
		})
	}
	if older(kubelet, oldestKubernetes) {
		all = append(all, Finding{
			Breaks: true, Object: "kubelet", Found: "Kubernetes " + kubelet, Needed: "Kubernetes " + oldestKubernetes + " or newer",
			Without: "the agent's token does not name its node, and the API server refuses what it writes", Remedy: "upgrade the node",
		})
	} else if older(kubelet, podsAPI) {
		all = append(all, Finding{
			Object: "kubelet", Found: "Kubernetes " + kubelet, Needed: "the kubelet's Pods API of Kubernetes " + podsAPI,
			Without: "the agent learns of pods from the API server: withdrawals take longer, and stop while it is away", Remedy: "upgrade the node when you can",
		})
	}
	return append(all, runtimeFindings(runtime)...)
}

func runtimeFindings(runtime string) []Finding {
	name, version, _ := strings.Cut(runtime, "://")
	finding := Finding{Object: "container runtime", Found: strings.TrimSpace(name + " " + version)}
	switch {
	case name == "containerd" && older(version, oldestContainerd):
		finding.Breaks, finding.Needed = true, "containerd "+oldestContainerd+" or newer"
		finding.Without, finding.Remedy = "the runtime does not speak CRI v1 and CNI 1.0", "upgrade containerd"
	case name == "containerd" && older(version, eventsContainerd):
		finding.Needed = "containerd " + eventsContainerd + " or newer"
		finding.Without, finding.Remedy = "where the agent may not use containerd's own socket, it learns of a crash from the kubelet, up to a second late", "upgrade containerd when you can"
	case name == "containerd" && older(version, statusContainerd):
		finding.Needed = "containerd " + statusContainerd + " or newer, which speaks CNI 1.1"
		finding.Without, finding.Remedy = "a node on which flock cannot serve pods stays Ready", "upgrade containerd when you can"
	case name == "cri-o" && older(version, oldestCRIO):
		finding.Breaks, finding.Needed = true, "CRI-O "+oldestCRIO+" or newer"
		finding.Without, finding.Remedy = "the runtime does not speak CRI v1", "upgrade CRI-O"
	case name == "docker":
		finding.Breaks, finding.Needed = true, "containerd or CRI-O"
		finding.Without, finding.Remedy = "the agent cannot ask it for sandboxes and exits", "change the node's runtime"
	default:
		return nil
	}
	return []Finding{finding}
}

// APIServer judges the version that an API server has at /version ("v1.37.2").
func APIServer(version string) []Finding {
	if !older(version, oldestKubernetes) {
		return nil
	}
	return []Finding{{
		Breaks: true, Object: "API server", Found: "Kubernetes " + version, Needed: "Kubernetes " + oldestKubernetes + " or newer",
		Without: "AddressClaims cannot be selected by their node, and no policy keeps an agent to its own node", Remedy: "upgrade the control plane",
	}}
}

// BIRD judges the version of the routing daemon ("2.0.12").
func BIRD(version string) []Finding {
	switch {
	case older(version, oldestBIRD):
		return []Finding{{
			Breaks: true, Object: "BIRD", Found: "BIRD " + version, Needed: "BIRD " + oldestBIRD + " or newer",
			Without: "it refuses the configuration that the agent writes", Remedy: "use the BIRD of flock's image",
		}}
	case version != "" && !older(version, silentBIRD):
		return []Finding{{
			Object: "BIRD", Found: "BIRD " + version, Needed: "BIRD " + oldestBIRD + " to 2.19, which report changes to the agent",
			Without: "the agent asks for sessions every 2 s, and a configuration that somebody else loads stays until the next change", Remedy: "use the BIRD of flock's image",
		}}
	}
	return nil
}

// older says whether a version is before another. A version that cannot be read is not.
func older(version, than string) bool {
	have, want := numbers(version), numbers(than)
	if len(have) == 0 {
		return false
	}
	for i, w := range want {
		h := 0
		if i < len(have) {
			h = have[i]
		}
		if c := cmp.Compare(h, w); c != 0 {
			return c < 0
		}
	}
	return false
}

// numbers are those that a version begins with: of "v1.37.2-gke.1" 1, 37 and 2.
func numbers(version string) (all []int) {
	rest := strings.TrimPrefix(strings.TrimSpace(version), "v")
	for {
		end := 0
		for end < len(rest) && rest[end] >= '0' && rest[end] <= '9' {
			end++
		}
		n, err := strconv.Atoi(rest[:end])
		if err != nil {
			return all
		}
		all = append(all, n)
		if end == len(rest) || rest[end] != '.' {
			return all
		}
		rest = rest[end+1:]
	}
}
