package conformance

import (
	"context"
	"fmt"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/plan"
)

// provideLoadBalancers has flock-controller give addresses to Services without a class, as a
// cloud's controller does, in all namespaces. The lab stays so.
func provideLoadBalancers(ctx context.Context, l *cluster.Lab) error {
	if l.CNI != cluster.Flock {
		return fmt.Errorf("lab %s runs %s, which has no load balancers: bring it up with --cni %s", l.Dir.Lab(), l.CNI, cluster.Flock)
	}
	_, err := l.Kubectl(ctx, fmt.Sprintf(`
apiVersion: flock.fritzlab.net/v1alpha1
kind: AddressPool
metadata: {name: conformance}
spec:
  cidrs: ["%s", "%s"]
  uses: [service]
  namespaceSelector: {}
`, plan.LoadBalancers.IPv6, plan.LoadBalancers.IPv4), "apply", "--filename=-")
	if err != nil {
		return err
	}
	const deployment, patch = "deployment/flock-controller", `{"spec":{"template":{"spec":{"containers":[{"name":"controller","args":["--without-class"]}]}}}}`
	if _, err := l.Kubectl(ctx, "", "--namespace=flock-system", "patch", deployment, "--patch="+patch); err != nil {
		return err
	}
	_, err = l.Kubectl(ctx, "", "--namespace=flock-system", "rollout", "status", deployment, "--timeout=120s")
	return err
}
