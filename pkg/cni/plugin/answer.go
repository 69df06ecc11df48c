package plugin

// failure is an error in the terms of the CNI spec.
type failure struct {
	code    int
	msg     string
	details string
}

// Codes of the CNI spec ("Error"); 100 and up are the plugin's own.
const (
	codeInvalidEnvironment = 4
	codeIO                 = 5
	codeInvalidConfig      = 7
	codeTryAgainLater      = 11
	codeNotAvailable       = 50
	codeNotUnderstood      = 100
)

const (
	supportedVersions = `["0.3.1","0.4.0","1.0.0","1.1.0"]`
	latestVersion     = "1.1.0"
)

// appendFailure appends f as the JSON object that a runtime expects.
func appendFailure(b []byte, f failure, cniVersion string) []byte {
	b = append(b, `{"cniVersion":`...)
	b = appendString(b, versionOr(cniVersion, latestVersion))
	b = append(b, `,"code":`...)
	b = appendInt(b, f.code)
	b = append(b, `,"msg":`...)
	b = appendString(b, f.msg)
	if f.details != "" {
		b = append(b, `,"details":`...)
		b = appendString(b, f.details)
	}
	return append(b, "}\n"...)
}

// appendVersions appends the answer to VERSION.
func appendVersions(b []byte, cniVersion string) []byte {
	b = append(b, `{"cniVersion":`...)
	b = appendString(b, versionOr(cniVersion, latestVersion))
	b = append(b, `,"supportedVersions":`...)
	b = append(b, supportedVersions...)
	return append(b, "}\n"...)
}

// versionOr returns v if it looks like a version, and otherwise instead.
func versionOr(v, instead string) string {
	if v == "" || len(v) > 32 {
		return instead
	}
	for i := 0; i < len(v); i++ {
		if c := v[i]; c != '.' && (c < '0' || c > '9') {
			return instead
		}
	}
	return v
}

// appendString appends s as a JSON string. Bytes beyond ASCII are copied: s
// comes from a JSON document or from a file's name.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ':
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

func appendInt(b []byte, n int) []byte {
	if n >= 10 {
		b = appendInt(b, n/10)
	}
	return append(b, byte('0'+n%10))
}

func itoa(n int) string { return string(appendInt(nil, n)) }
