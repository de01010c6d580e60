// SPDX-License-Identifier: Apache-2.0

// cert-manager runs cert-manager's own controllers for self-signed and CA issuers of one namespace.
//
// Its command is a Go module of its own that the module proxy does not serve, but every controller
// registers itself from a package of the main module: importing the package is enough. There is no
// webhook, so nothing but the schema of the CRDs checks what tests write.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cert-manager/cert-manager/pkg/controller"
	logf "github.com/cert-manager/cert-manager/pkg/logs"

	// The kinds of issuers that the issuers' controller looks up.
	_ "github.com/cert-manager/cert-manager/pkg/issuer/ca"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/selfsigned"

	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/approver"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/ca"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/selfsigned"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/issuing"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/keymanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/readiness"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/requestmanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/revisionmanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/trigger"
	_ "github.com/cert-manager/cert-manager/pkg/controller/issuers"
)

const workers = 2 // of each controller: a handful of certificates

func main() {
	var options controller.ContextOptions
	flag.StringVar(&options.Kubeconfig, "kubeconfig", "", "how to reach the API server")
	flag.StringVar(&options.Namespace, "namespace", "", "whose issuers and certificates")
	flag.Parse()
	// Defaults that the real command has in its configuration, not in the packages used here.
	options.CertificateRequestMinimumBackoffDuration = time.Second // the real one waits an hour
	options.CertificateRequestMaximumBackoffDuration = time.Minute
	options.CopiedAnnotationPrefixes = []string{"*", "-kubectl.kubernetes.io/"}
	options.KubernetesAPIQPS, options.KubernetesAPIBurst = 20, 50
	logf.InitLogs()
	defer logf.FlushLogs()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(logf.NewContext(ctx, logf.Log, "controller"), options); err != nil {
		fmt.Fprintln(os.Stderr, "cert-manager:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, options controller.ContextOptions) error {
	factory, err := controller.NewContextFactory(ctx, options)
	if err != nil {
		return err
	}
	shared, err := factory.Build()
	if err != nil {
		return err
	}
	loops := map[string]controller.Interface{}
	for name, construct := range controller.Known() {
		if loops[name], err = construct(factory); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	// Only now: constructing a controller is what asks the factories for its informers.
	shared.SharedInformerFactory.Start(ctx.Done())
	shared.KubeSharedInformerFactory.Start(ctx.Done())
	group, ctx := errgroup.WithContext(ctx)
	for name, loop := range loops {
		group.Go(func() error {
			if err := loop.Run(workers, ctx); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	logf.FromContext(ctx).Info("started", "controllers", len(loops))
	return group.Wait()
}
