//go:build !linux

package flockctl

import "errors"

func kernelProblems() ([]problem, error) {
	return nil, errors.New("flockctl check --local looks at a node's kernel: run it on the node")
}
