// Command print prints the worked examples of a page as JSON, for tests in another
// module: that of the lab pins all of Kubernetes' dependencies and takes none of
// flock's.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"flock.fritzlab.net/flock/pkg/address/grant/examples"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: print docs/addresses.md")
		os.Exit(2)
	}
	setup, all, err := examples.Load(os.Args[1])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(struct {
			Setup    string
			Examples []examples.Example
		}{setup, all})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
