package wire

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
)

func TestRequestRoundTrip(t *testing.T) {
	for name, want := range map[string]Request{
		"empty": {Stdin: []byte{}},
		"full": {
			NetNSErrno: 2,
			Env:        []string{"CNI_COMMAND=ADD", "CNI_ARGS=", "CNI_NETNS=/run/netns/é"},
			Stdin:      []byte("{\"name\":\"flock\"}\x00FLK"),
		},
	} {
		got, err := ParseRequest(AppendRequest(nil, want))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, want)
		}
	}
}

func TestResponseRoundTrip(t *testing.T) {
	want := Response{Exit: 1, Output: []byte(`{"code":11}`)}
	got, err := ParseResponse(AppendResponse(nil, want))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

// By the first bytes, different releases detect that they do not match. They are
// written out here, so that a change of them is a decision.
func TestBytesOnTheWire(t *testing.T) {
	request := AppendRequest(nil, Request{NetNSErrno: 0x0102, Env: []string{"A=b"}, Stdin: []byte("{}")})
	if want := []byte("FLK\x01\x02\x01\x00\x00\x04\x00\x00\x00A=b\x00{}"); !bytes.Equal(request, want) {
		t.Errorf("request is %q, want %q", request, want)
	}
	response := AppendResponse(nil, Response{Exit: 7, Output: []byte("{}")})
	if want := []byte("FLK\x01\x07{}"); !bytes.Equal(response, want) {
		t.Errorf("response is %q, want %q", response, want)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		in       string
		request  error
		response error
	}{
		"nothing":         {"", ErrNotFlock, ErrNotFlock},
		"garbage":         {"HTTP/1.1 400 Bad Request", ErrNotFlock, ErrNotFlock},
		"magic alone":     {"FLK", ErrNotFlock, ErrNotFlock},
		"newer":           {"FLK\x02", VersionError{2}, VersionError{2}},
		"header cut":      {"FLK\x01", ErrTruncated, ErrTruncated},
		"env length lies": {"FLK\x01\x00\x00\x00\x00\xff\xff\xff\xffA=b\x00", ErrTruncated, nil},
		"env unfinished":  {"FLK\x01\x00\x00\x00\x00\x03\x00\x00\x00A=b", ErrMalformed, nil},
	} {
		if _, err := ParseRequest([]byte(c.in)); !errors.Is(err, c.request) {
			t.Errorf("%s: request: got %v, want %v", name, err, c.request)
		}
		if _, err := ParseResponse([]byte(c.in)); !errors.Is(err, c.response) {
			t.Errorf("%s: response: got %v, want %v", name, err, c.response)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add(AppendRequest(nil, Request{Env: []string{"CNI_COMMAND=ADD", "CNI_ARGS="}, Stdin: []byte("{}")}))
	f.Add([]byte("FLK\x01\x00\x00\x00\x00\x03\x00\x00\x00A=b"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRequest(b)
		if err != nil {
			return
		}
		if again := AppendRequest(nil, r); !bytes.Equal(again, b) {
			t.Errorf("%q was read as %+v, which is written %q", b, r, again)
		}
	})
}

func FuzzParseResponse(f *testing.F) {
	f.Add(AppendResponse(nil, Response{Exit: 1, Output: []byte("{}")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseResponse(b)
		if err != nil {
			return
		}
		if again := AppendResponse(nil, r); !bytes.Equal(again, b) {
			t.Errorf("%q was read as %+v, which is written %q", b, r, again)
		}
	})
}
