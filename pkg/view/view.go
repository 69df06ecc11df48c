// Package view is what people see of one node: its pods with what the kernel has for them,
// routes, sessions and Events, as values, and as a page of HTML. It is pure: the agent
// fills it in, flockctl and browsers show it.
package view

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"strings"
	"time"
)

// Node is what there is to see of a node.
type Node struct {
	Name    string    `json:"name"`
	Version string    `json:"version"` // of the agent
	At      time.Time `json:"at"`
	// Conditions of the NodeConfig, as the agent would write them now.
	Conditions []Condition `json:"conditions,omitempty"`
	Pods       []Pod       `json:"pods,omitempty"`
	Routes     []Route     `json:"routes,omitempty"`
	Sessions   []Session   `json:"sessions,omitempty"`
	// Policies are those that have decided about packets of the node's pods.
	Policies []Policy `json:"policies,omitempty"`
	// Events are the last ones that the agent has reported, the newest first.
	Events []Event `json:"events,omitempty"`
	// Errors say what could not be read.
	Errors []string `json:"errors,omitempty"`
}

// Condition is one of the NodeConfig's.
type Condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

// Pod is an attachment of a pod, of which one has more than one only while it gets a new
// sandbox.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// State is pending, committed, released or unknown, as in flock_attachments.
	State     string    `json:"state"`
	Container string    `json:"container"` // ID of the sandbox
	Link      string    `json:"link"`      // the host end
	MTU       int       `json:"mtu,omitempty"`
	Addresses []Address `json:"addresses"`
	// Ports are the node's that lead to the pod.
	Ports []string `json:"ports,omitempty"`
	// Spoofed and Denied are packets that were dropped: with a source that is not the
	// pod's, and by policies.
	Spoofed uint64 `json:"spoofed"`
	Denied  uint64 `json:"denied"`
	// Policies are those about the pod that have decided something on the node.
	Policies []string `json:"policies,omitempty"`
	// Problems are what the kernel has otherwise than it should; empty if nothing.
	Problems []string `json:"problems,omitempty"`
}

// Address is one of a pod's.
type Address struct {
	Address string `json:"address"`
	// Kind is own, pool or anycast.
	Kind string `json:"kind"`
	From string `json:"from,omitempty"` // the CIDR or the pool
	// Route is where the kernel sends packets for the address, as ip route get would say.
	Route string `json:"route"`
	// Reaches says that this is the pod's link.
	Reaches bool `json:"reaches"`
	// Announced says that routers are told of the address itself. Why says why not, of an
	// anycast address.
	Announced bool   `json:"announced"`
	Why       string `json:"why,omitempty"`
}

// Route is one of flock's in the kernel.
type Route struct {
	Prefix string `json:"prefix"`
	To     string `json:"to"`
	Metric uint32 `json:"metric"`
	For    string `json:"for"` // what it is there for
}

// Session is one with a router.
type Session struct {
	Protocol string    `json:"protocol"`
	Name     string    `json:"name"`
	Router   string    `json:"router,omitempty"`
	AS       uint32    `json:"as,omitempty"`
	Up       bool      `json:"up"`
	State    string    `json:"state"`
	Since    time.Time `json:"since,omitzero"`
	Error    string    `json:"error,omitempty"`
	Imported int64     `json:"imported"`
	Exported int64     `json:"exported"`
}

// Policy is what one has decided on the node.
type Policy struct {
	Name      string `json:"name"`
	Direction string `json:"direction"`
	Verdict   string `json:"verdict"`
	Packets   uint64 `json:"packets"`
}

// Event is what happened to an object.
type Event struct {
	At     time.Time `json:"at"`
	Type   string    `json:"type"` // Normal or Warning
	Object string    `json:"object"`
	Reason string    `json:"reason"`
	Note   string    `json:"note"`
}

// Wrong counts what is not as it should be.
func (n Node) Wrong() (wrong int) {
	for _, c := range n.Conditions {
		if c.Status != "True" {
			wrong++
		}
	}
	for _, p := range n.Pods {
		wrong += len(p.Problems)
	}
	for _, s := range n.Sessions {
		if !s.Up {
			wrong++
		}
	}
	return wrong + len(n.Errors)
}

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"ago":   ago,
	"short": func(s string) string { return s[:min(len(s), 12)] },
	"join":  strings.Join,
}).Parse(pageText))

// Page writes the node's page. Everything in the node is escaped. The page has no script,
// and asks for nothing else.
func Page(w io.Writer, n Node) error { return page.Execute(w, n) }

// ago is how long before now a time is, as kubectl prints ages.
func ago(now, t time.Time) string {
	if t.IsZero() {
		return ""
	}
	switch d := now.Sub(t); {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours())/24)
	}
}
