package service

import (
	"net/netip"

	"flock.fritzlab.net/flock/pkg/datapath/proxy"
	"flock.fritzlab.net/flock/pkg/pod"
)

// An Event is something that the agent has learned.
type Event interface{ event() }

type (
	// Services are all Services that matter. Until the first one, nothing that an earlier run
	// announced is withdrawn.
	Services struct{ All []*Service }
	// Slices are the EndpointSlices of the Services that need them ([Service.NeedSlices]), by
	// Service. They are known for Services of these names; nil: of any. Those that are known
	// and not in it have none.
	Slices struct {
		Of    map[Ref][]Slice
		Names map[string]bool
	}
	// NodeChanged is the node as it is now.
	NodeChanged struct{ Node Node }
	// Held are the addresses that pods hold, each with the name of its pod.
	Held struct{ By map[netip.Addr]string }
	// PodReported is the latest report about a pod of the node.
	PodReported struct{ PodReport }
	// PodDeleting says that a pod has a deletion timestamp, whichever source reported it first.
	PodDeleting struct{ UID pod.UID }
	// PodGone says that a pod does not exist any more.
	PodGone struct{ UID pod.UID }
	// PodsSynced are all pods of the node: others do not exist.
	PodsSynced struct{ All []pod.UID }
	// Exited says that a container, of any pod, has ended.
	Exited struct{ ContainerID string }
	// Looked is what the kernel has of kube-proxy's rules for these keys, each with whether the
	// endpoints on the node were asked for.
	Looked struct {
		Asked map[proxy.Key]bool
		Look  proxy.Look
	}
)

func (Services) event()    {}
func (Slices) event()      {}
func (NodeChanged) event() {}
func (Held) event()        {}
func (PodReported) event() {}
func (PodDeleting) event() {}
func (PodGone) event()     {}
func (PodsSynced) event()  {}
func (Exited) event()      {}
func (Looked) event()      {}
