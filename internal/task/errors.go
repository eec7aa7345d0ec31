// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"agentguard.dev/agentguard/client"
)

// Every error that the engine returns is a *client.Error: its code says what
// kind of thing went wrong, its message names the object and the way out.

func invalidf(format string, args ...any) error {
	return &client.Error{Status: http.StatusBadRequest, Code: "invalid", Message: fmt.Sprintf(format, args...)}
}

func notFoundf(format string, args ...any) error {
	return &client.Error{Status: http.StatusNotFound, Code: "not_found", Message: fmt.Sprintf(format, args...)}
}

func conflictf(format string, args ...any) error {
	return &client.Error{Status: http.StatusConflict, Code: "conflict", Message: fmt.Sprintf(format, args...)}
}

func fullf(format string, args ...any) error {
	return &client.Error{Status: http.StatusInsufficientStorage, Code: "full", Message: fmt.Sprintf(format, args...)}
}

func unavailablef(format string, args ...any) error {
	return &client.Error{Status: http.StatusServiceUnavailable, Code: "unavailable", Message: fmt.Sprintf(format, args...)}
}

// wrap gives err a code if it has none yet.
func wrap(step string, err error) error {
	var known *client.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return &client.Error{Status: known.Status, Code: known.Code, Message: step + ": " + known.Message}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return unavailablef("%s: %v", step, err)
	default:
		return &client.Error{Status: http.StatusInternalServerError, Code: "internal", Message: step + ": " + err.Error()}
	}
}
