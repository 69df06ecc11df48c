package flockctl

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

var statusCommand = command{
	name:  "status",
	short: "Show the cluster at a glance: nodes, sessions, pools, what is wrong, the next command",
	long: `One screen for the whole cluster. Below the counts is what is wrong, as "flockctl check"
has it, and for each object the command that shows more. With --watch it is shown again
every two seconds.`,
	examples: `flockctl status
flockctl status --watch
flockctl status -o json | jq .sessions`,
	flags: []string{"output", "watch"},
	run:   runStatus,
}

// overall is the state of a cluster.
type overall struct {
	Nodes  ratio `json:"nodes"` // that serve pods
	Agents ratio `json:"agents"`
	// AgentsUnknown: whoever asks may not see pods.
	AgentsUnknown bool `json:"agentsUnknown,omitempty"`

	Sessions ratio `json:"sessions"`
	// Anycast counts pods at anycast addresses, and those that are announced.
	Anycast ratio `json:"anycast"`
	// Services counts the addresses of Services that nodes report, and those that a node
	// announces.
	Services ratio `json:"services"`
	// Images are those that flock's pods run, with the number of nodes.
	Images   map[string]int `json:"images,omitempty"`
	Pools    []poolUse      `json:"pools,omitempty"`
	Problems []problem      `json:"problems"`
	// Next are the commands that show more of what is wrong.
	Next []string `json:"next,omitempty"`
}

type ratio struct {
	Up  int `json:"up"`
	All int `json:"all"`
}

func (r ratio) String() string { return fmt.Sprintf("%d of %d", r.Up, r.All) }

type poolUse struct {
	Name      string `json:"name"`
	Addresses int32  `json:"addresses"`
	Nodes     int    `json:"nodes"`
	Services  int32  `json:"services"` // addresses that Services have
}

func runStatus(ctx context.Context, s *session, _ []string) error {
	c, err := s.connect()
	if err != nil {
		return err
	}
	nodes, pools, found, err := c.check(ctx, s.remarks)
	if err != nil {
		return err
	}
	all := overallOf(nodes, pools, found)
	if s.output != "" {
		return s.structured(all)
	}
	s.printOverall(s.out, all)
	return nil
}

// overallOf is pure.
func overallOf(nodes []node, pools []v1alpha1.AddressPool, found []problem) overall {
	all := overall{Problems: found}
	var configs []v1alpha1.NodeConfig
	for _, n := range nodes {
		all.Nodes.All++
		if n.condition("Ready") == "True" {
			all.Nodes.Up++
		}
		all.Agents.All++
		all.AgentsUnknown = all.AgentsUnknown || n.agentsUnknown
		if n.agentState() == "Ready" {
			all.Agents.Up++
		}
		if n.agent != nil {
			for _, container := range n.agent.Spec.Containers {
				if container.Name == "agent" {
					if all.Images == nil {
						all.Images = map[string]int{}
					}
					all.Images[container.Image]++
				}
			}
		}
		if n.config == nil {
			continue
		}
		configs = append(configs, *n.config)
		for _, t := range n.config.Status.Sessions {
			all.Sessions.All++
			if t.Up {
				all.Sessions.Up++
			}
		}
	}
	for _, p := range pathsOf(configs) {
		all.Anycast.All++
		if p.Announced {
			all.Anycast.Up++
		}
	}
	announced := map[string]bool{} // by address, which several Services may share
	for _, i := range servicesOf(nil, configs, nil) {
		for _, a := range i.Addresses {
			nodes, _ := a.announcing()
			announced[a.Address] = announced[a.Address] || len(nodes) > 0
		}
	}
	for _, up := range announced {
		all.Services.All++
		if up {
			all.Services.Up++
		}
	}
	for _, p := range poolsOf(pools, configs) {
		all.Pools = append(all.Pools, poolUse{p.Name, p.Addresses, len(p.Nodes), p.Services})
	}
	for _, p := range found {
		if next := nextCommand(p.Object, nodes); !slices.Contains(all.Next, next) {
			all.Next = append(all.Next, next)
		}
	}
	return all
}

// nextCommand shows more of an object that has a problem.
func nextCommand(object string, nodes []node) string {
	if name, ok := strings.CutPrefix(object, "AddressPool "); ok {
		return "kubectl describe addresspool " + name
	}
	for _, n := range nodes {
		switch {
		case n.name != object:
		case n.config == nil:
			return "kubectl describe node " + n.name
		case n.agent != nil && n.agentState() != "Ready" && n.agentState() != "?":
			return fmt.Sprintf("kubectl -n %s describe pod %s", n.agent.Namespace, n.agent.Name)
		}
	}
	return "flockctl node " + object
}

func (s *session) printOverall(w io.Writer, all overall) {
	if all.Nodes.All == 0 {
		printNodes(w, nil, false)
		return
	}
	var images []string
	for image, n := range all.Images {
		images = append(images, fmt.Sprintf("%s (%d)", image, n))
	}
	slices.Sort(images)
	var pools []string
	for _, p := range all.Pools {
		var uses []string
		if p.Services > 0 {
			uses = append(uses, fmt.Sprintf("%d addresses of Services", p.Services))
		}
		if p.Addresses > 0 || len(uses) == 0 {
			uses = append(uses, fmt.Sprintf("%d addresses on %d node(s)", p.Addresses, p.Nodes))
		}
		pools = append(pools, p.Name+": "+strings.Join(uses, ", "))
	}
	agents, nothing := all.Agents.String()+" Ready", "Nothing is wrong."
	if all.AgentsUnknown {
		agents, nothing = "?", "Nothing is wrong in what could be read."
	}
	rows := [][]string{
		{"Nodes", all.Nodes.String() + " serve pods"},
		{"Agents", agents},
		{"Image", or(strings.Join(images, ", "), none)},
		{"Sessions", all.Sessions.String() + " up"},
		{"Anycast", all.Anycast.String() + " pods announced"},
		{"Services", all.Services.String() + " addresses announced"},
		{"Pools", or(strings.Join(pools, "; "), none)},
	}
	table(w, "", rows)
	if len(all.Problems) == 0 {
		fmt.Fprintln(w, "\n"+s.paint(green, nothing))
		return
	}
	fmt.Fprintln(w, "\n"+s.paint(red, fmt.Sprintf("Wrong (%d)", len(all.Problems))))
	rows = nil
	for _, p := range all.Problems {
		rows = append(rows, []string{p.Object, p.Problem})
	}
	table(w, "  ", rows)
	fmt.Fprintln(w, "\nNext")
	for _, command := range all.Next {
		table(w, "  ", [][]string{{strings.Replace(command, "flockctl", or(s.program, "flockctl"), 1)}})
	}
}
