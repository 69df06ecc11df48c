package flockctl

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

var completionCommand = command{
	name: "completion", args: "bash|zsh|fish",
	short: "Print the script by which a shell completes commands, nodes, pools, Services and pods",
	long: `Load it in the shell's start file, for example in ~/.bashrc:

  source <(flockctl completion bash)

For "kubectl flock" put an executable called kubectl_complete-flock into the PATH:

  #!/bin/sh
  flockctl complete -- "$@"; echo :4`,
	examples: `source <(flockctl completion bash)
flockctl completion zsh > "${fpath[1]}/_flockctl"
flockctl completion fish > ~/.config/fish/completions/flockctl.fish`,
	min: 1, max: 1,
	run: func(_ context.Context, s *session, args []string) error {
		script, ok := completionScripts[args[0]]
		if !ok {
			return usageError(fmt.Sprintf("shell %q: want bash, zsh or fish", args[0]))
		}
		_, err := fmt.Fprint(s.out, script)
		return err
	},
}

var completionScripts = map[string]string{
	"bash": `_flockctl() {
  local IFS=$'\n'
  COMPREPLY=($(flockctl complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -F _flockctl flockctl
`,
	"zsh": `#compdef flockctl
_flockctl() {
  local -a found
  found=("${(@f)$(flockctl complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  compadd -- $found
}
compdef _flockctl flockctl
`,
	"fish": `complete -c flockctl -f -a '(flockctl complete -- (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'
`,
}

// completeCommand answers the scripts: its arguments are the words so far, the last of
// which is to be completed.
var completeCommand = command{
	name: "complete", hidden: true, max: 1000,
	run: func(ctx context.Context, s *session, args []string) error {
		for _, word := range s.candidates(ctx, args) {
			fmt.Fprintln(s.out, word)
		}
		return nil
	},
}

// candidates are the words that the last one may become. What cannot be asked has none.
func (s *session) candidates(ctx context.Context, words []string) (all []string) {
	if len(words) == 0 {
		words = []string{""}
	}
	last := words[len(words)-1]
	defer func() {
		all = slices.DeleteFunc(all, func(w string) bool { return !strings.HasPrefix(w, last) })
		slices.Sort(all)
	}()
	i := slices.IndexFunc(words[:len(words)-1], func(w string) bool { return !strings.HasPrefix(w, "-") })
	if i < 0 {
		for _, c := range commands {
			if !c.hidden {
				all = append(all, c.name)
			}
		}
		return append(all, "help")
	}
	if words[i] == "help" {
		return s.candidates(ctx, words[i+1:])
	}
	j := slices.IndexFunc(commands, func(c command) bool { return c.name == words[i] || c.name+"s" == words[i] })
	if j < 0 {
		return nil
	}
	c := commands[j]
	switch before := words[len(words)-2]; {
	case before == "-o" || before == "--output":
		return c.formats()
	case strings.HasPrefix(last, "-"):
		for _, name := range append([]string{"help", "context", "kubeconfig", "namespace"}, c.flags...) {
			all = append(all, "--"+name)
		}
		return all
	case c.name == "completion":
		return []string{"bash", "fish", "zsh"}
	}
	api, err := s.connect()
	if err != nil {
		return nil
	}
	switch c.name {
	case "node", "check", "drain", "render", "routes":
		configs, _ := api.nodeConfigs(ctx)
		for _, nc := range configs {
			all = append(all, nc.Name)
		}
	case "pool":
		pools, _ := api.pools(ctx)
		for _, p := range pools {
			all = append(all, p.Name)
		}
	case "anycast":
		configs, _ := api.nodeConfigs(ctx)
		for _, p := range pathsOf(configs) {
			all = append(all, p.Address)
		}
		all = slices.Compact(all)
	case "service":
		services := &corev1.ServiceList{}
		if api.list(ctx, api.core, "services", "", "", "", services) == nil {
			for _, svc := range services.Items {
				all = append(all, svc.Namespace+"/"+svc.Name)
			}
		}
	case "pod", "policy", "trace":
		pods := &corev1.PodList{}
		if api.list(ctx, api.core, "pods", "", "", "", pods) == nil {
			for _, p := range pods.Items {
				all = append(all, p.Namespace+"/"+p.Name)
			}
		}
	}
	return all
}
