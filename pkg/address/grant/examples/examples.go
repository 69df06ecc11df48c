// Package examples reads the worked examples of docs/addresses.md, which are both
// documentation and test: of package grant, and of a cluster by the lab.
package examples

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
)

// Example is a workload, and what is to become of its pods.
type Example struct {
	Name      string
	Namespace string
	// Kind is the kind of the object that makes the pods, and App its name: Pod
	// for a pod without any.
	Kind, App, Image string
	Annotations      map[string]string
	// Eth0 holds, for each pod in the order of their starts, the addresses on its
	// eth0; a prefix that is longer than one address stands for some address of it.
	Eth0 [][]netip.Prefix
	// Announced are the routes that the pods' addresses make, beside the summaries.
	Announced []netip.Prefix
	// Warnings are those of the annotations' parser.
	Warnings []string
	// Refused is why the pod does not start; the other results are empty then.
	Refused string
}

// Load returns the examples of a page, and the objects (YAML documents) that they
// build on.
func Load(path string) (setup string, _ []Example, _ error) {
	page, err := os.ReadFile(path)
	if err != nil {
		return "", nil, err
	}
	setup, ok1 := between(string(page), "<!-- setup -->\n```yaml\n", "```\n")
	text, ok2 := between(string(page), "<!-- examples -->\n", "<!-- end of examples -->")
	if !ok1 || !ok2 {
		return "", nil, fmt.Errorf("%s: the marks around the setup or the examples are missing", path)
	}
	var out []Example
	for _, chapter := range strings.Split("\n"+text, "\n### ")[1:] {
		e, err := parse(chapter)
		if err != nil {
			return "", nil, fmt.Errorf("%s: example %q: %w", path, e.Name, err)
		}
		out = append(out, e)
	}
	return setup, out, nil
}

var pod = regexp.MustCompile(`^# namespace (\S+), (\S+) (\S+), image (\S+)$`)

func parse(chapter string) (Example, error) {
	name, rest, _ := strings.Cut(chapter, "\n")
	e := Example{Name: name, Annotations: map[string]string{}}
	asked, ok1 := between(rest, "```yaml\n", "```\n")
	_, results, ok2 := strings.Cut(rest, "```\n```\n")
	if !ok1 || !ok2 {
		return e, fmt.Errorf("want a block of annotations and, right after it, one of results")
	}
	results, _, _ = strings.Cut(results, "```")
	for line := range lines(asked) {
		if m := pod.FindStringSubmatch(line); m != nil {
			e.Namespace, e.Kind, e.App, e.Image = m[1], m[2], m[3], m[4]
			continue
		}
		key, value, ok := strings.Cut(line, ": ")
		if !ok {
			return e, fmt.Errorf("%q is neither the pod nor an annotation", line)
		}
		e.Annotations[key] = strings.Trim(value, `"`)
	}
	if e.Namespace == "" {
		return e, fmt.Errorf("no line says which pod it is")
	}
	for line := range lines(results) {
		kind, text, _ := strings.Cut(line, " ")
		text = strings.TrimSpace(text)
		var err error
		var addrs []netip.Prefix
		switch kind {
		case "eth0":
			addrs, err = prefixes(text)
			e.Eth0 = append(e.Eth0, addrs)
		case "announced":
			e.Announced, err = prefixes(text)
		case "warning":
			e.Warnings = append(e.Warnings, text)
		case "refused":
			e.Refused = text
		default:
			err = fmt.Errorf("%q is no result: want eth0, announced, warning or refused", kind)
		}
		if err != nil {
			return e, err
		}
	}
	if (e.Refused == "") == (len(e.Eth0) == 0) {
		return e, fmt.Errorf("want addresses on eth0 or a refusal")
	}
	return e, nil
}

func prefixes(text string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, item := range strings.Fields(text) {
		if a, err := netip.ParseAddr(item); err == nil {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
			continue
		}
		p, err := netip.ParsePrefix(item)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func between(s, from, to string) (string, bool) {
	_, rest, ok := strings.Cut(s, from)
	inside, _, end := strings.Cut(rest, to)
	return inside, ok && end
}

func lines(s string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for in := bufio.NewScanner(strings.NewReader(s)); in.Scan(); {
			if in.Text() != "" && !yield(in.Text()) {
				return
			}
		}
	}
}
