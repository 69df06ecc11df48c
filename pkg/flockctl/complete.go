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
	// bash breaks words at colons, which addresses have: the line is read anew, and what is
	// before the last colon is left out of the answer. Files are for what has no other.
	"bash": `_flockctl() {
  local -a words
  local line=${COMP_LINE:0:COMP_POINT} last before
  read -ra words <<<"$line"
  [[ $line == *' ' ]] && words+=("")
  last=${words[${#words[@]}-1]}
  before=${last%"${last##*:}"}
  local IFS=$'\n'
  COMPREPLY=($(flockctl complete -- "${words[@]:1}" 2>/dev/null))
  [[ $COMP_WORDBREAKS == *:* ]] && COMPREPLY=("${COMPREPLY[@]#"$before"}")
}
complete -o default -F _flockctl flockctl
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

// takesValue are the flags with a value that nothing is proposed for.
var takesValue = map[string]bool{
	"-n": true, "--namespace": true, "--context": true, "--kubeconfig": true, "-f": true, "--filename": true, "--server": true, "-s": true,
	"--token": true, "--as": true, "--request-timeout": true, "--on-link": true, "--address": true, "--cluster": true, "--user": true,
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
	if len(words) > 1 && takesValue[words[len(words)-2]] {
		return nil
	}
	i := 0
	for ; i < len(words)-1 && strings.HasPrefix(words[i], "-"); i++ {
		if takesValue[words[i]] || words[i] == "-o" || words[i] == "--output" {
			i++ // its value
		}
	}
	if i >= len(words)-1 {
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
	arguments := 0 // before the last word
	for k := i + 1; k < len(words)-1; k++ {
		switch w := words[k]; {
		case takesValue[w], w == "-o", w == "--output":
			k++
		case !strings.HasPrefix(w, "-"):
			arguments++
		}
	}
	switch before := words[len(words)-2]; {
	case before == "-o" || before == "--output":
		return c.formats()
	case strings.HasPrefix(last, "-"):
		for _, name := range append([]string{"help", "context", "kubeconfig", "namespace"}, c.flags...) {
			all = append(all, "--"+name)
		}
		return all
	case arguments >= min(c.max, 2):
		return nil // trace's third is a port
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
