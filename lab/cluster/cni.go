package cluster

import (
	"fmt"

	"flock.fritzlab.net/flock/lab/fabric"
)

// CNI is the network plugin of a lab's nodes.
type CNI string

// Those that a lab knows.
const (
	// Flock is what this repository makes.
	Flock CNI = "flock"
	// PTP is the reference plugin: it shows that the lab itself works, and is
	// what flock is measured against.
	PTP CNI = "ptp"
	// None leaves the nodes without a plugin, for whoever deploys one: they are not Ready
	// until then. Flock's image is there, and the router speaks with it or with another.
	None CNI = "none"
)

// ParseCNI reads the value of --cni.
func ParseCNI(s string) (CNI, error) {
	switch c := CNI(s); c {
	case Flock, PTP, None:
		return c, nil
	}
	return "", fmt.Errorf("--cni %q: want %q, %q or %q", s, Flock, PTP, None)
}

// routing is how the router learns of the pods.
func (l *Lab) routing() fabric.Routing {
	switch {
	case l.CNI == PTP:
		return fabric.Static
	case l.Routing == "":
		return fabric.BGP
	}
	return l.Routing
}

// podInterfacePrefix begins the names of the host's ends of the pods' links; by it
// kube-proxy knows traffic of local pods. Empty: it knows it by the pods' prefixes.
func (c CNI) podInterfacePrefix() string {
	switch c {
	case PTP:
		return "veth"
	case None:
		return ""
	}
	return "flock"
}

// startupTaint is what nodes register with, for flock to take away.
func (c CNI) startupTaint() string {
	if c == Flock {
		return startupTaint
	}
	return ""
}
