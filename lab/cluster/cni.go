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
)

// ParseCNI reads the value of --cni.
func ParseCNI(s string) (CNI, error) {
	switch c := CNI(s); c {
	case Flock, PTP:
		return c, nil
	}
	return "", fmt.Errorf("--cni %q: want %q or %q", s, Flock, PTP)
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
// kube-proxy knows traffic of local pods.
func (c CNI) podInterfacePrefix() string {
	if c == PTP {
		return "veth"
	}
	return "flock"
}

// startupTaint is what nodes register with, for flock to take away.
func (c CNI) startupTaint() string {
	if c == PTP {
		return ""
	}
	return startupTaint
}
