package plugin

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestScan(t *testing.T) {
	for name, c := range map[string]struct {
		config string
		want   spoken
	}{
		"both":                       {`{"cniVersion":"1.0.0","agentSocket":"/run/x"}`, spoken{"1.0.0", "/run/x"}},
		"with spaces":                {"\n{ \"cniVersion\" :\t\"1.0.0\" , \"agentSocket\"\n: \"/run/x\" }", spoken{"1.0.0", "/run/x"}},
		"not those of prevResult":    {`{"prevResult":{"cniVersion":"0.4.0"},"cniVersion":"1.0.0"}`, spoken{"1.0.0", ""}},
		"nor after it":               {`{"cniVersion":"1.0.0","prevResult":{"cniVersion":"0.4.0","agentSocket":"/x"}}`, spoken{"1.0.0", ""}},
		"nor in a list":              {`{"a":[{"cniVersion":"0.4.0"},"cniVersion"],"b":"cniVersion"}`, spoken{}},
		"nor as a value":             {`{"name":"cniVersion","type":"agentSocket"}`, spoken{}},
		"quotes and braces in text":  {`{"name":"}\",{\"cniVersion\":\"9\"","cniVersion":"1.0.0"}`, spoken{"1.0.0", ""}},
		"of another type":            {`{"cniVersion":1,"agentSocket":null}`, spoken{}},
		"escaped":                    {`{"cniVersion":"1.0\u002e0","agentSocket":"\/run"}`, spoken{}},
		"an array":                   {`[{"cniVersion":"1.0.0"}]`, spoken{}},
		"cut":                        {`{"cniVersion":"1.0.0","agentSocket":"/ru`, spoken{"1.0.0", ""}},
		"nothing":                    {``, spoken{}},
		"only closing":               {`}}]]"cniVersion":"1.0.0"`, spoken{}},
		"the last of several counts": {`{"cniVersion":"0.4.0","cniVersion":"1.0.0"}`, spoken{"1.0.0", ""}},
	} {
		if got := scan([]byte(c.config)); got != c.want {
			t.Errorf("%s: got %+v, want %+v", name, got, c.want)
		}
	}
}

// FuzzScan holds the scanner against encoding/json: where that finds an object,
// both must find the same.
func FuzzScan(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","agentSocket":"/run/x","prevResult":{"cniVersion":"0.4.0"}}`))
	f.Add([]byte(`{"a":"\\","cniVersion":[],"agentSocket":"\""}`))
	f.Fuzz(func(t *testing.T, config []byte) {
		got := scan(config) // whatever the bytes are, it ends
		var fields map[string]json.RawMessage
		if json.Unmarshal(config, &fields) != nil || bytes.Contains(config, []byte(`\`)) {
			return
		}
		// A key that comes twice counts by its last value here, and by its
		// last string there: not worth a rule.
		for _, key := range []string{`"cniVersion"`, `"agentSocket"`} {
			if bytes.Count(config, []byte(key)) > 1 {
				return
			}
		}
		text := func(key string) string {
			var s string
			if json.Unmarshal(fields[key], &s) != nil {
				return ""
			}
			return s
		}
		want := spoken{text("cniVersion"), text("agentSocket")}
		if valid := strings.ToValidUTF8(string(config), ""); valid == string(config) && got != want {
			t.Errorf("%q: got %+v, want %+v", config, got, want)
		}
	})
}

func TestFailureIsJSON(t *testing.T) {
	f := failure{code: 11, msg: "socket \"/a\\b\"\n\x01 is é", details: "look"}
	var got struct {
		CNIVersion string `json:"cniVersion"`
		Code       int    `json:"code"`
		Msg        string `json:"msg"`
		Details    string `json:"details"`
	}
	if err := json.Unmarshal(appendFailure(nil, f, "0.4.0"), &got); err != nil {
		t.Fatal(err)
	}
	if got.CNIVersion != "0.4.0" || got.Code != f.code || got.Msg != f.msg || got.Details != f.details {
		t.Errorf("got %+v", got)
	}
}

// What a configuration says is its version goes into the answer only if it is one.
func TestVersionIsVersion(t *testing.T) {
	for v, want := range map[string]string{
		"0.3.1":                 "0.3.1",
		"":                      "1.1.0",
		`1","code":0,"x":"`:     "1.1.0",
		strings.Repeat("1", 33): "1.1.0",
	} {
		if got := versionOr(v, latestVersion); got != want {
			t.Errorf("%q: got %q, want %q", v, got, want)
		}
	}
}
