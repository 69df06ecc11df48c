package plugin

import "unsafe"

// spoken is what the plugin itself reads of the network configuration.
type spoken struct {
	cniVersion  string // to answer in; empty if there is none
	agentSocket string // the agent's socket; empty for the usual one
}

// scan finds the plugin's two fields in a network configuration: the strings of
// these names in the outermost object, not those of a prevResult inside it. It
// takes any bytes; of what is not JSON it finds what it can, for it is the agent
// that says what is wrong with it. A value with an escape in it is passed over. What
// it returns aliases config.
func scan(config []byte) spoken {
	var found spoken
	depth := 0
	key := ""        // of the outermost object, when its value is next
	inValue := false // after the colon
	for i := 0; i < len(config); i++ {
		switch config[i] {
		case '{', '[':
			depth++
			key, inValue = "", false
		case '}', ']':
			depth--
		case ',':
			key, inValue = "", false
		case ':':
			inValue = true
		case '"':
			text, end := stringAt(config, i)
			i = end
			if depth != 1 {
				continue
			}
			if !inValue {
				key = text
				continue
			}
			switch key {
			case "cniVersion":
				found.cniVersion = text
			case "agentSocket":
				found.agentSocket = text
			}
		}
	}
	return found
}

// stringAt returns the string that opens at start and the index of its closing
// quote. The text is empty if there is an escape in it or it does not close.
func stringAt(config []byte, start int) (text string, end int) {
	escaped := false
	for i := start + 1; i < len(config); i++ {
		switch config[i] {
		case '\\':
			escaped = true
			i++
		case '"':
			if escaped {
				return "", i
			}
			return unsafe.String(&config[start+1], i-start-1), i
		}
	}
	return "", len(config)
}
