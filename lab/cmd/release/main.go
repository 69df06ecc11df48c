// Command release makes what users of flock download: see release --help.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"flock.fritzlab.net/flock/lab/release"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "release",
		Short: "Make a release of flock, without a container engine",
		Long: `Make a release of flock, without a container engine: programs, the container image
for amd64 and arm64, manifests, a bill of materials and checksums. The same commit and
the same version of Go make the same bytes. See docs/release.md.`,
		SilenceUsage: true, SilenceErrors: true,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	checkout := root.PersistentFlags().String("checkout", "..", "`directory` with flock's sources")
	version := root.PersistentFlags().String("version", "", "`version` of the release (default: as git describes the commit)")
	revision := root.PersistentFlags().String("revision", "", "`commit` (default: git's)")
	cache := root.PersistentFlags().String("cache", "", "`directory` for Debian's packages (default: flock-release in the user's cache)")
	prepare := func(cmd *cobra.Command) (release.Source, error) {
		if *cache == "" {
			dir, err := os.UserCacheDir()
			if err != nil {
				return release.Source{}, fmt.Errorf("%w: give --cache", err)
			}
			*cache = filepath.Join(dir, "flock-release")
		}
		return release.SourceOf(cmd.Context(), *checkout, *version, *revision)
	}

	var o release.Options
	make := &cobra.Command{
		Use: "make", Short: "Make all files of a release", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Source, err = prepare(cmd); err != nil {
				return err
			}
			if o.DownloadURL == "" {
				o.DownloadURL = "https://github.com/fritzlab/flock/releases/download/" + o.Source.Version
			}
			o.Cache, o.Progress = *cache, cmd.ErrOrStderr()
			names, err := release.Make(cmd.Context(), o)
			if err != nil {
				return err
			}
			for _, name := range names {
				fmt.Fprintln(cmd.OutOrStdout(), filepath.Join(o.Out, name))
			}
			return nil
		},
	}
	make.Flags().StringVar(&o.Out, "out", "../out/release", "`directory` of the result; it is emptied first")
	make.Flags().StringVar(&o.Image, "image", "", "`repository` that the image will be pushed to, as the manifests name it: registry.example/flock")
	make.Flags().StringVar(&o.DownloadURL, "download-url", "", "`URL` of the directory where the files will be, for krew")
	make.Flags().StringSliceVar(&o.Architectures, "arch", nil, "`architectures` (default amd64,arm64)")

	var arch, out string
	content := &cobra.Command{
		Use: "root", Short: "Lay out the content of the image below a directory, for the Dockerfile", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			source, err := prepare(cmd)
			if err != nil {
				return err
			}
			return release.Root(cmd.Context(), source, arch, *cache, out)
		},
	}
	content.Flags().StringVar(&arch, "arch", "amd64", "`architecture`")
	content.Flags().StringVar(&out, "out", "", "`directory` of the result")

	var from string
	push := &cobra.Command{
		Use: "push REPOSITORY[:TAG]", Short: "Push the image of a release to a registry", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pushed, err := release.Push(cmd.Context(), from, args[0])
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), pushed)
			}
			return err
		},
	}
	push.Flags().StringVar(&from, "from", "../out/release", "`directory` of the release")

	lock := &cobra.Command{
		Use: "lock", Short: "Pin the Debian packages that apt offers now", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := release.Lock(cmd.Context())
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(*checkout, release.LockFile), []byte(text), 0o644)
		},
	}
	root.AddCommand(make, content, push, lock)
	return root
}
