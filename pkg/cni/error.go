package cni

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Code is a CNI error code (SPEC.md, "Error"). Those from 100 are flock's own.
type Code uint

// The codes of the CNI spec that flock uses.
const (
	CodeIncompatibleVersion Code = 1
	CodeUnsupportedField    Code = 2
	CodeUnknownContainer    Code = 3
	CodeInvalidEnvironment  Code = 4
	CodeIO                  Code = 5
	CodeDecode              Code = 6
	CodeInvalidConfig       Code = 7
	CodeInvalidNetNS        Code = 8
	CodeTryAgainLater       Code = 11
	CodeNotAvailable        Code = 50
	CodeLimitedConnectivity Code = 51

	// CodeFailed is for an error to which its maker gave no code.
	CodeFailed Code = 100
	// CodeInternal is for a fault in flock itself (libcni's ErrInternal).
	CodeInternal Code = 999
)

// Error is an error with the code that a runtime gets to see. Its text ends in
// the pod's events, so it is written for the operator.
type Error struct {
	Code    Code
	Msg     string
	Details string // where to look and what to do; may be empty
}

func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + "; " + e.Details
}

// TryAgainLater says that the call may well succeed if it is repeated as it is.
func TryAgainLater(format string, args ...any) *Error {
	return newError(CodeTryAgainLater, format, args...)
}

// NotAvailable is STATUS's answer when an ADD would not succeed.
func NotAvailable(format string, args ...any) *Error {
	return newError(CodeNotAvailable, format, args...)
}

// LimitedConnectivity is STATUS's answer when an ADD would not succeed and
// pods that run may have lost some of their network.
func LimitedConnectivity(format string, args ...any) *Error {
	return newError(CodeLimitedConnectivity, format, args...)
}

// InvalidConfig says that the network configuration holds a wrong value.
func InvalidConfig(format string, args ...any) *Error {
	return newError(CodeInvalidConfig, format, args...)
}

// InvalidEnvironment says that a CNI_* variable is missing or wrong.
func InvalidEnvironment(format string, args ...any) *Error {
	return newError(CodeInvalidEnvironment, format, args...)
}

// InvalidNetNS says that what CNI_NETNS names can't be a pod's network namespace.
func InvalidNetNS(format string, args ...any) *Error {
	return newError(CodeInvalidNetNS, format, args...)
}

// UnknownContainer says that there is no attachment of this container.
func UnknownContainer(format string, args ...any) *Error {
	return newError(CodeUnknownContainer, format, args...)
}

func newError(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Msg: fmt.Errorf(format, args...).Error()}
}

// asError finds the coded error in err's chain, keeping the words that wrap it,
// or makes one of code otherwise.
func asError(err error, otherwise Code) *Error {
	var coded *Error
	if !errors.As(err, &coded) {
		return &Error{Code: otherwise, Msg: err.Error()}
	}
	if err == error(coded) {
		return coded
	}
	return &Error{Code: coded.Code, Msg: err.Error()}
}

// errorJSON renders e for a runtime that speaks cniVersion.
func errorJSON(e *Error, cniVersion string) []byte {
	b, err := json.Marshal(struct {
		CNIVersion string `json:"cniVersion"`
		Code       Code   `json:"code"`
		Msg        string `json:"msg"`
		Details    string `json:"details,omitempty"`
	}{cniVersion, e.Code, e.Msg, e.Details})
	if err != nil {
		panic(err) // strings and a number always marshal
	}
	return append(b, '\n')
}
