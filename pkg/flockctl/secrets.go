package flockctl

import (
	"encoding/json"
	"regexp"
	"strings"

	"sigs.k8s.io/yaml"
)

// removed stands for what is taken out.
const removed = "(removed)"

// secretWord is the end of a name whose value nobody else should see: of a field, an
// annotation, a setting, a flag or a header, in any notation. bgpPassword, DB_API_KEY and
// example.com/token end so; passwordSecretRef does not.
const secretWord = `(?:pass|pwd|password|passwd|passphrase|passcode|secret|token|credential|authorization|cookie|(?:api|private|secret|access|shared|signing|encryption|md5)[_-]?key)s?`

var (
	secretName = regexp.MustCompile(`(?i)` + secretWord + `$`)

	// secretTexts are applied in their order.
	secretTexts = []struct {
		is *regexp.Regexp
		by string
	}{
		{regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----.*?(-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|$)`), removed},
		{regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*`), removed}, // a JSON web token
		{regexp.MustCompile(`(?i)\b(bearer|basic)(?:\s|%20)+[A-Za-z0-9+/._~=-]{6,}`), "${1} " + removed},
		// A quoted value, also one in JSON that is quoted itself; a list; a bare one.
		{regexp.MustCompile(`(?i)([a-z0-9_./-]*` + secretWord + `)(\\*["']?\s*[:=]\s*|\s+)("(?:[^"\\]|\\.)*"|\\+".*?\\+"|'[^']*'|\[[^\]]*\])`), `${1}${2}"` + removed + `"`},
		{regexp.MustCompile(`(?i)((?:authorization|cookie)\s*:\s*)[^\s"'\\(][^\r\n"]*`), "${1}" + removed}, // a header, with all its parts
		{regexp.MustCompile(`(?i)([a-z0-9_./-]*` + secretWord + `)(\\*["']?\s*[:=]\s*)([^\s"'\\]+)`), "${1}${2}" + removed},
		// A flag and its value, as words or as elements of a list.
		{regexp.MustCompile(`(?i)(--?[a-z0-9_.-]*` + secretWord + `)(\\*["']?[\s,]+\\*["']?)([^\s"'\\,\]]+)`), "${1}${2}" + removed},
		{regexp.MustCompile(`(://)[^\s/@"']+@`), "${1}" + removed + "@"}, // in a URL
		{regexp.MustCompile(`(?i)([?&][a-z0-9_.-]*(?:key|sig|signature|auth|code)=)[^\s&"']+`), "${1}" + removed},
	}

	// references are the fields of an object that says where a secret is.
	references = map[string]bool{
		"name": true, "namespace": true, "key": true, "path": true, "secretName": true, "items": true,
		"optional": true, "mode": true, "defaultMode": true, "audience": true, "expirationSeconds": true,
	}
)

// withoutSecretText takes what looks like a secret out of text.
func withoutSecretText(text string) string {
	for _, t := range secretTexts {
		text = t.is.ReplaceAllString(text, t.by)
	}
	return text
}

// withoutSecrets turns objects in JSON into YAML without what may hold secrets: values of
// environment variables and of other programs' annotations, fields with a secret's name,
// and everything in text that looks like one.
func withoutSecrets(raw []byte) ([]byte, error) {
	var object any
	if err := json.Unmarshal(raw, &object); err != nil {
		return nil, err
	}
	return yaml.Marshal(clean(object, false))
}

// clean takes the secrets out of v; secret says that v is one by its name.
func clean(v any, secret bool) any {
	switch v := v.(type) {
	case string:
		if secret {
			return removed
		}
		return withoutSecretText(v)
	case float64:
		if secret {
			return removed
		}
	case []any:
		for i := range v {
			after := false // the flag whose value it is
			if i > 0 {
				flag, _ := v[i-1].(string)
				after = strings.HasPrefix(flag, "-") && secretName.MatchString(flag)
			}
			v[i] = clean(v[i], secret || after)
		}
	case map[string]any:
		delete(v, "managedFields")
		if annotations, ok := v["annotations"].(map[string]any); ok {
			delete(annotations, "kubectl.kubernetes.io/last-applied-configuration")
			for k := range annotations {
				if !explains(k) {
					annotations[k] = removed
				}
			}
		}
		if _, isEnv := v["name"].(string); isEnv && v["value"] != nil {
			v["value"] = removed // of an environment variable
		}
		for k := range v {
			v[k] = clean(v[k], secretName.MatchString(k) || secret && !references[k])
		}
	}
	return v
}

// explains says whether an annotation is one of flock or Kubernetes. Others may hold anything.
func explains(annotation string) bool {
	domain, _, found := strings.Cut(annotation, "/")
	return found && (domain == "flock.fritzlab.net" || domain == "kubernetes.io" || strings.HasSuffix(domain, ".kubernetes.io"))
}
