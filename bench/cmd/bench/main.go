// Command bench measures flock in a running lab: see bench --help.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"flock.fritzlab.net/flock/bench"
	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/state"
)

func main() {
	member.RunHelper()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var lab, out string
	var n int
	var list strings.Builder
	for _, b := range bench.All {
		fmt.Fprintf(&list, "\n  %s  %s", b.Name, b.About)
	}
	root := &cobra.Command{
		Use:   "bench [NAME…]",
		Args:  cobra.ArbitraryArgs,
		Short: "Measure flock in a running lab, beside baselines",
		Long: `Measures flock in a running lab, beside baselines that are taken in the same run.
Prints a table and writes one JSON object a line.
` + list.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, names []string) error {
			if n < 1 {
				return fmt.Errorf("--n %d: want at least 1", n)
			}
			if os.Geteuid() != 0 {
				return errors.New("bench enters the lab's nodes: run it as root")
			}
			dir, err := state.For(lab)
			if err != nil {
				return err
			}
			l, err := cluster.Load(dir)
			if err != nil {
				return err
			}
			return bench.Run(cmd.Context(), l, n, names, cmd.OutOrStdout(), out)
		},
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.Flags().StringVar(&lab, "name", "lab", "`name` of the lab")
	root.Flags().IntVar(&n, "n", 100, "`times` that each thing is measured")
	root.Flags().StringVar(&out, "out", "out/bench.json", "`file` for the figures")
	root.AddCommand(&cobra.Command{
		Use: bench.NodeCommand + " NAME", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return bench.ServeNode(cmd.Context(), args[0], cmd.InOrStdin(), cmd.OutOrStdout())
		},
	})
	root.AddCommand(local())
	return root
}

// local compares builds of flock without a lab.
func local() *cobra.Command {
	c := bench.LocalConfig{}
	var builds []string
	var phases bool
	cmd := &cobra.Command{
		Use:   "local",
		Short: "Compare ADD and DEL of builds of flock with each other and with ptp, without a lab",
		Long: `Compares ADD and DEL of builds of flock with each other and with ptp, in turns, in
one run. It needs no lab: each build's agent runs in a network namespace of its own,
without an API server. A ratio is the median of those of each round.`,
		Example: `  bench local --build new=bin --build old=../old/bin --ptp ~/go/bin`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, b := range builds {
				name, dir, ok := strings.Cut(b, "=")
				if !ok {
					return fmt.Errorf("--build %s: want NAME=DIRECTORY", b)
				}
				c.Contestants = append(c.Contestants, bench.Contestant{Name: name, Bin: dir})
			}
			if phases {
				if len(c.Contestants) != 1 {
					return errors.New("--phases: want one --build")
				}
				return bench.Phases(cmd.Context(), c.Contestants[0], c.N, cmd.OutOrStdout())
			}
			return bench.Local(cmd.Context(), c, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringArrayVar(&builds, "build", []string{"flock=bin"}, "`NAME=DIRECTORY` of flock and flock-agent; may be repeated")
	cmd.Flags().StringVar(&c.BaselineBin, "ptp", "", "`directory` of ptp and host-local; without it the last build is the baseline")
	cmd.Flags().IntVar(&c.N, "n", 100, "`pods` of each build")
	cmd.Flags().IntSliceVar(&c.Parallel, "at-once", []int{1}, "how many pods come at once; may be repeated")
	cmd.Flags().BoolVar(&phases, "phases", false, "trace the calls in the kernel, and print where their time goes; for one build")
	return cmd
}
