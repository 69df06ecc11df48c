package flockctl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/remotecommand"

	"flock.fritzlab.net/flock/pkg/datapath/policy"
)

// askAgent asks flock's agent in a pod at its socket, by running flock-probe in its
// container: the agent answers to nobody else about policies.
func (c *cluster) askAgent(ctx context.Context, agent *corev1.Pod, path string) ([]byte, error) {
	to := c.core.Get().Namespace(agent.Namespace).Resource("pods").Name(agent.Name).SubResource("exec").
		Param("container", "agent").Param("stdout", "true").Param("stderr", "true").
		Param("command", "/usr/local/bin/flock-probe").Param("command", path).URL()
	exec, err := remotecommand.NewWebSocketExecutor(c.config, "GET", to.String())
	if err != nil {
		return nil, err
	}
	var out, complaints bytes.Buffer
	err = exec.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &complaints})
	if err != nil {
		why := strings.TrimSpace(complaints.String() + out.String())
		if apierrors.IsForbidden(err) || strings.Contains(err.Error(), "forbidden") {
			why = fmt.Sprintf("it needs the right to get and create pods/exec in namespace %s", agent.Namespace)
		}
		return nil, errors.Join(fmt.Errorf("cannot ask the agent in pod %s/%s: %w", agent.Namespace, agent.Name, err), errText(why))
	}
	return out.Bytes(), nil
}

func errText(text string) error {
	if text == "" {
		return nil
	}
	return errors.New(text)
}

// aboutPod asks the agent of a node what is in force about one of its pods.
func (r *reading) aboutPod(ctx context.Context, s *session, node, pod string, q *policy.Question) (*policy.PodReport, error) {
	agent := r.facts.agents[node]
	if agent == nil {
		return nil, fmt.Errorf("node %s has no agent that can be asked", node)
	}
	values := url.Values{"pod": {pod}}
	if q != nil {
		values.Set("direction", string(q.Direction))
		values.Set("peer", q.Peer.String())
		values.Set("protocol", fmt.Sprint(q.Protocol))
		values.Set("port", fmt.Sprint(q.Port))
		if q.ToNode {
			values.Set("node", "true")
		}
	}
	ask := s.ask
	if ask == nil {
		ask = r.cluster.askAgent
	}
	body, err := ask(ctx, agent, "/policy?"+values.Encode())
	if err != nil {
		return nil, err
	}
	report := &policy.PodReport{}
	if err := json.Unmarshal(body, report); err != nil {
		return nil, fmt.Errorf("cannot read the answer of the agent of node %s: %w: %.200s", node, err, body)
	}
	return report, nil
}

// askAgents asks the agents of both ends of each connection what they have in force, and
// adds it to the answer.
func (r *reading) askAgents(ctx context.Context, s *session, a *traceAnswer) {
	type asked struct {
		node, pod string
		question  policy.Question
	}
	known := map[asked]string{}
	for i := range a.Connections {
		c := &a.Connections[i]
		for _, of := range []struct {
			side *traceSide
			end  end
		}{{&c.Egress, c.From}, {&c.Ingress, c.To}} {
			if !of.side.Judged || of.end.Node == "" {
				continue
			}
			q := of.side.question
			key := asked{of.end.Node, of.end.Pod, q}
			text, done := known[key]
			if !done {
				text = compareReport(of.side.Verdict, of.end.Node)(r.aboutPod(ctx, s, of.end.Node, of.end.Pod, &q))
				known[key] = text
			}
			of.side.InForce = text
		}
	}
}

// compareReport says in words how what a node has in force compares to a verdict.
func compareReport(v policy.Verdict, node string) func(*policy.PodReport, error) string {
	return func(report *policy.PodReport, err error) string {
		switch {
		case err != nil:
			return "not known: " + strings.ReplaceAll(err.Error(), "\n", ": ")
		case len(report.Links) == 0:
			return fmt.Sprintf("node %s does not know the pod", node)
		case !report.InForce:
			return fmt.Sprintf("node %s is behind: %s", node, report.Why)
		case len(report.Verdicts) != 1:
			return fmt.Sprintf("node %s gives no answer", node)
		case report.Verdicts[0].Allowed != v.Allowed:
			return fmt.Sprintf("node %s decides otherwise: %s", node, report.Verdicts[0].Reason())
		case report.Verdicts[0].Reason() != v.Reason():
			return fmt.Sprintf("the same on node %s, but %s", node, report.Verdicts[0].Reason())
		}
		return "the same on node " + node
	}
}
