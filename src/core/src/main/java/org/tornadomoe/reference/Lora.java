package org.tornadomoe.reference;

import java.util.List;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.quant.LoraAdapter;

/**
 * What adapters add to the two GEMMs, in float64, as if B·A had been added to the unquantised weights; so the inputs
 * are unquantised too. If router weights apply to the input, they multiply w13's addition and not w2's; vLLM multiplies
 * w2's.
 */
final class Lora {
    private Lora() {}

    /**
     * GEMM 1's output [P, rows of w13] with B (A x) of the pair's token x added.
     *
     * @param hidden [M, H]
     * @param adapterOfToken [M], null for a token without one
     */
    static double[] addGateUp(
            FusedMoeConfig config,
            double[] gemm1,
            double[] hidden,
            int[] local,
            Routing routing,
            List<@Nullable LoraAdapter> adapterOfToken) {
        int h = config.hiddenDim();
        int rows = config.gateUpRows();
        int slices = LoraAdapter.slices(config);
        double[] sum = gemm1.clone();
        for (int p = 0; p < local.length; p++) {
            int token = p / config.pairsPerToken();
            LoraAdapter adapter = adapterOfToken.get(token);
            if (adapter == null || local[p] < 0) {
                continue;
            }
            int r = adapter.rank();
            int expert = routing.ids()[p];
            int a = LoraAdapter.offset(adapter.w13A(), expert, slices * r * h);
            int b = LoraAdapter.offset(adapter.w13B(), expert, rows * r);
            double[] shrunk = product(adapter.w13A(), a, slices * r, hidden, token * h, h);
            for (int row = 0; row < rows; row++) {
                double delta = 0;
                for (int j = 0; j < r; j++) {
                    delta += adapter.w13B()[b + row * r + j] * shrunk[LoraAdapter.slice(config, row) * r + j];
                }
                sum[p * rows + row] += config.applyRouterWeightOnInput() ? delta * routing.weights()[p] : delta;
            }
        }
        return sum;
    }

    /**
     * GEMM 2's output [P, H], already weighted, with B (A h) of the pair's activation h added, times the router's
     * weight.
     *
     * @param act [P, I], unquantised
     */
    static double[] addDown(
            FusedMoeConfig config,
            double[] gemm2,
            double[] act,
            int[] local,
            Routing routing,
            List<@Nullable LoraAdapter> adapterOfToken) {
        int h = config.hiddenDim();
        int i = config.intermediateSizePerPartition();
        double[] sum = gemm2.clone();
        for (int p = 0; p < local.length; p++) {
            LoraAdapter adapter = adapterOfToken.get(p / config.pairsPerToken());
            if (adapter == null || local[p] < 0) {
                continue;
            }
            int r = adapter.rank();
            int expert = routing.ids()[p];
            int b = LoraAdapter.offset(adapter.w2B(), expert, h * r);
            double[] shrunk =
                    product(adapter.w2A(), LoraAdapter.offset(adapter.w2A(), expert, r * i), r, act, p * i, i);
            for (int row = 0; row < h; row++) {
                double delta = 0;
                for (int j = 0; j < r; j++) {
                    delta += adapter.w2B()[b + row * r + j] * shrunk[j];
                }
                sum[p * h + row] += config.applyRouterWeightOnInput() ? delta : delta * routing.weights()[p];
            }
        }
        return sum;
    }

    private static double[] product(float[] a, int from, int rows, double[] x, int at, int cols) {
        double[] out = new double[rows];
        for (int row = 0; row < rows; row++) {
            for (int c = 0; c < cols; c++) {
                out[row] += a[from + row * cols + c] * x[at + c];
            }
        }
        return out;
    }
}
