package cluster

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"flock.fritzlab.net/flock/lab/fabric"
	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/process"
)

// Status prints the lab's processes with their logs, its nodes and the router's
// sessions. A process that ended or a missing member is an error, after
// everything was printed.
func (l *Lab) Status(ctx context.Context, out io.Writer) error {
	fmt.Fprintf(out, "lab %s: %d nodes, %s, %s, %s, MTU %d, files in %s\n\n", l.Dir.Lab(), l.Nodes, l.CNI, l.routing(), l.Families, l.MTU, l.Dir.Path())
	var wrong []string
	table := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "MEMBER\tPROCESS\tPID\tSTATE\tLOG")
	for _, name := range plan.Members(plan.Nodes(l.Nodes)) {
		m := member.Of(l.Dir, name)
		if !m.Exists() {
			fmt.Fprintf(table, "%s\t\t\tmissing\t\n", name)
			wrong = append(wrong, name)
			continue
		}
		processes, err := process.List(m)
		if err != nil {
			return err
		}
		if len(processes) == 0 {
			fmt.Fprintf(table, "%s\t\t\t\t\n", name)
		}
		for _, p := range processes {
			state := "running"
			if !p.Running() {
				state = "ended"
				wrong = append(wrong, p.Name+" on "+name)
			}
			fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%s\n", name, p.Name, p.PID, state, p.Log)
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	if err := l.apiReady(ctx); err != nil {
		wrong = append(wrong, "API server: "+err.Error())
	} else if nodes, err := l.Kubectl(ctx, "", "get", "nodes", "--output=wide"); err != nil {
		wrong = append(wrong, err.Error())
	} else {
		fmt.Fprintln(out, nodes)
	}
	asks := [][]string{{"show", "protocols"}}
	if l.routing() == fabric.OSPF {
		for _, instance := range fabric.OSPFInstances(l.Families) {
			asks = append(asks, []string{"show", "ospf", "neighbors", instance})
		}
	}
	for _, ask := range asks {
		answer, err := l.birdc(ask...)
		if err != nil {
			wrong = append(wrong, err.Error())
		}
		fmt.Fprintln(out, answer)
	}
	if len(wrong) > 0 {
		return fmt.Errorf("found broken: %s: run lab up to repair it", strings.Join(wrong, ", "))
	}
	return nil
}
