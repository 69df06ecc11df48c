package flock_test

import (
	"regexp"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
)

var yamlBlock = regexp.MustCompile("(?ms)^```yaml\n(.*?)^```")

// TestExamples reads each of flock's objects in the pages as the agent does: no field is
// unknown, and no value is refused.
func TestExamples(t *testing.T) {
	parse := map[string]func(string) error{
		"NodeConfig": func(text string) error {
			var o v1alpha1.NodeConfig
			if err := yaml.UnmarshalStrict([]byte(text), &o); err != nil {
				return err
			}
			_, err := config.ParseNode(&o)
			return err
		},
		"AddressPool": func(text string) error {
			var o v1alpha1.AddressPool
			if err := yaml.UnmarshalStrict([]byte(text), &o); err != nil {
				return err
			}
			_, err := config.ParsePool(&o)
			return err
		},
		"NodeConfigTemplate": func(text string) error {
			var o v1alpha1.NodeConfigTemplate
			return yaml.UnmarshalStrict([]byte(text), &o)
		},
	}
	count := map[string]int{}
	for _, page := range pages(t) {
		for _, block := range yamlBlock.FindAllStringSubmatch(read(t, page), -1) {
			for _, doc := range regexp.MustCompile(`(?m)^---$`).Split(block[1], -1) {
				var kind metav1.TypeMeta
				if err := yaml.Unmarshal([]byte(doc), &kind); err != nil {
					t.Errorf("%s: %v in\n%s", page, err, doc)
					continue
				}
				if !strings.HasPrefix(kind.APIVersion, v1alpha1.GroupName+"/") || parse[kind.Kind] == nil {
					continue
				}
				count[kind.Kind]++
				if err := parse[kind.Kind](doc); err != nil {
					t.Errorf("%s: %v in\n%s", page, err, doc)
				}
			}
		}
	}
	for kind := range parse {
		if count[kind] == 0 {
			t.Errorf("no page has a %s", kind)
		}
	}
}
