//go:build apiserver

package kube

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// olderObjects: the objects of older releases are served as they are, with every field.
func olderObjects(t *testing.T, s *server) {
	files, err := filepath.Glob("../api/v1alpha1/testdata/releases/*/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no objects of older releases", err)
	}
	c, err := NewClient(s.Admin())
	if err != nil {
		t.Fatal(err)
	}
	resources := map[string]string{"NodeConfig": nodeConfigs, "NodeConfigTemplate": "nodeconfigtemplates", "AddressPool": "addresspools", "AddressClaim": "addressclaims"}
	seen := map[string]int{}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for document := range strings.SplitSeq(string(content), "\n---\n") {
			sent, got := map[string]any{}, map[string]any{}
			if err := yaml.Unmarshal([]byte(document), &sent); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			body, err := json.Marshal(sent)
			if err != nil {
				t.Fatal(err)
			}
			kind, _ := sent["kind"].(string)
			seen[kind]++
			answer, err := c.flock.Post().Resource(resources[kind]).Param("dryRun", "All").Param("fieldValidation", "Strict").
				SetHeader("Content-Type", "application/json").Body(body).Do(t.Context()).Raw()
			if err != nil {
				t.Errorf("%s: %s is refused: %v: %s", file, kind, err, answer)
				continue
			}
			if err := json.Unmarshal(answer, &got); err != nil {
				t.Fatal(err)
			}
			if missing := lost("spec", sent["spec"], got["spec"]); len(missing) > 0 {
				t.Errorf("%s: %s loses %s", file, kind, strings.Join(missing, ", "))
			}
		}
	}
	for kind := range resources {
		if seen[kind] == 0 {
			t.Errorf("there is no %s among the objects", kind)
		}
	}
}

// lost names the fields of sent that got does not have, or has otherwise. got may have
// more: defaults.
func lost(path string, sent, got any) (all []string) {
	switch sent := sent.(type) {
	case map[string]any:
		g, _ := got.(map[string]any)
		for k, v := range sent {
			all = append(all, lost(path+"."+k, v, g[k])...)
		}
		return all
	case []any:
		g, _ := got.([]any)
		if len(g) != len(sent) {
			return []string{path}
		}
		for i, v := range sent {
			all = append(all, lost(path+"[]", v, g[i])...)
		}
		return all
	}
	if !reflect.DeepEqual(sent, got) {
		return []string{path}
	}
	return nil
}
