package kube

import (
	"context"
	"encoding/json"
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// ReviewToken asks whose token it is (TokenReview). ok is false if it is nobody's.
func (c *Client) ReviewToken(ctx context.Context, token string) (user authenticationv1.UserInfo, ok bool, err error) {
	review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}
	if err := c.review(ctx, "authentication.k8s.io/v1", "TokenReview", "tokenreviews", review); err != nil {
		return user, false, err
	}
	return review.Status.User, review.Status.Authenticated, nil
}

// ReviewAccess asks whether a user may do verb to a path that is no object
// (SubjectAccessReview).
func (c *Client) ReviewAccess(ctx context.Context, user authenticationv1.UserInfo, verb, path string) (allowed bool, err error) {
	extra := map[string]authorizationv1.ExtraValue{}
	for k, v := range user.Extra {
		extra[k] = authorizationv1.ExtraValue(v)
	}
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: user.Username, UID: user.UID, Groups: user.Groups, Extra: extra,
		NonResourceAttributes: &authorizationv1.NonResourceAttributes{Verb: verb, Path: path},
	}}
	err = c.review(ctx, "authorization.k8s.io/v1", "SubjectAccessReview", "subjectaccessreviews", review)
	return review.Status.Allowed && !review.Status.Denied, err
}

// review creates an object that is only answered, and reads the answer into it.
func (c *Client) review(ctx context.Context, version, kind, resource string, object any) error {
	body, err := json.Marshal(object)
	if err != nil {
		return err
	}
	answer, err := c.core.Post().AbsPath("/apis/"+version+"/"+resource).
		SetHeader("Content-Type", runtime.ContentTypeJSON).SetHeader("Accept", runtime.ContentTypeJSON).
		Body(body).Do(ctx).Raw()
	if err != nil {
		return fmt.Errorf("%s: %w", kind, err)
	}
	return json.Unmarshal(answer, object)
}
