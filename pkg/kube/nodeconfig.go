package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// Save keeps nc at path for Load, atomically: a node that has served pods can do
// so again when its agent starts without the API server.
func Save(path string, nc *v1alpha1.NodeConfig) error {
	b, err := json.Marshal(nc)
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// Load returns what Save kept at path; nil without an error if there is nothing.
func Load(path string) (*v1alpha1.NodeConfig, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	nc := &v1alpha1.NodeConfig{}
	if err := json.Unmarshal(b, nc); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return nc, nil
}
