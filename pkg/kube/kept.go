package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"flock.fritzlab.net/flock/internal/atomicfile"
)

// Save keeps obj at path for Load, atomically: a node that has served pods can do
// so again when its agent starts without the API server.
func Save(path string, obj any) error {
	b, err := json.Marshal(obj)
	if err != nil {
		return err
	}
	return atomicfile.Write(path, b)
}

// Load returns what Save kept at path; nil without an error if there is nothing.
func Load[T any](path string) (*T, error) {
	b, err := atomicfile.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	obj := new(T)
	if err := json.Unmarshal(b, obj); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return obj, nil
}
