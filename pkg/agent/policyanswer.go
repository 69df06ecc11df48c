//go:build linux

package agent

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"flock.fritzlab.net/flock/pkg/datapath/policy"
)

// Answer implements Answerer: /policy?pod=NAMESPACE/NAME says what is in force about a
// pod of the node, as a [policy.PodReport]. With direction (ingress, egress), peer (an
// address), protocol and port (numbers), and node=true for what the pod sends to its own
// node, it also says what is decided about such a connection. flockctl asks it.
func (p *policies) Answer() (pattern string, h http.Handler) {
	return "GET /policy", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		namespace, name, questions, err := policyQuestions(r.URL.Query())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		report, err := p.About(r.Context(), namespace, name, questions...)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(report)
	})
}

func policyQuestions(values url.Values) (namespace, name string, questions []policy.Question, err error) {
	namespace, name, ok := strings.Cut(values.Get("pod"), "/")
	if !ok || namespace == "" || name == "" {
		return "", "", nil, fmt.Errorf("pod=%s: want NAMESPACE/NAME", values.Get("pod"))
	}
	if values.Get("peer") == "" {
		return namespace, name, nil, nil
	}
	q := policy.Question{Direction: policy.Direction(values.Get("direction")), ToNode: values.Get("node") == "true"}
	if q.Direction != policy.Ingress && q.Direction != policy.Egress {
		return "", "", nil, fmt.Errorf("direction=%s: want %s or %s", q.Direction, policy.Ingress, policy.Egress)
	}
	if q.Peer, err = netip.ParseAddr(values.Get("peer")); err != nil {
		return "", "", nil, fmt.Errorf("peer=%s: want an address", values.Get("peer"))
	}
	protocol, err := strconv.ParseUint(values.Get("protocol"), 10, 8)
	if err != nil {
		return "", "", nil, fmt.Errorf("protocol=%s: want its number", values.Get("protocol"))
	}
	port, err := strconv.ParseUint(values.Get("port"), 10, 16)
	if err != nil {
		return "", "", nil, fmt.Errorf("port=%s: want a number, 0 for a protocol without ports", values.Get("port"))
	}
	q.Protocol, q.Port = uint8(protocol), uint16(port)
	return namespace, name, []policy.Question{q}, nil
}
