package org.tornadomoe.host;

import org.jspecify.annotations.Nullable;
import org.tornadomoe.quant.RouterNetwork;

/** A router that is a network, token by token, in float64. Thread-safe. */
final class NetworkRouter {
    private final RouterNetwork network;

    NetworkRouter(RouterNetwork network) {
        this.network = network;
    }

    /** R, the number of values of a state. */
    int width() {
        return network.width();
    }

    /**
     * Computes a token's K experts and their weights, from {@code at} on; -1 and 0 for no expert. Reads and writes the
     * token's state.
     *
     * @param hidden the token's values are from {@code from} on
     * @param states [M, R]; null for none
     */
    void choose(
            float[] hidden,
            int from,
            float @Nullable [] states,
            int token,
            int k,
            int[] ids,
            double[] weights,
            int at) {
        double[] state = state(hidden, from, states, token * width());
        for (int i = 0; states != null && i < state.length; i++) {
            states[token * width() + i] = (float) state[i];
        }
        double[] scores = scores(state);
        int none = scores.length - 1;
        for (int slot = 0; slot < k; slot++) {
            int best = -1;
            for (int c = 0; c < scores.length; c++) {
                boolean better = best < 0 || scores[c] + bias(c) > scores[best] + bias(best);
                if (better && !isTaken(ids, at, slot, c == none ? -1 : c)) {
                    best = c;
                }
            }
            ids[at + slot] = best == none ? -1 : best;
            weights[at + slot] = best == none ? 0 : scores[best];
        }
    }

    private double bias(int choice) {
        return network.choiceBias()[choice];
    }

    private static boolean isTaken(int[] ids, int at, int count, int id) {
        for (int slot = 0; slot < count; slot++) {
            if (ids[at + slot] == id) {
                return true;
            }
        }
        return false;
    }

    private double[] state(float[] hidden, int from, float @Nullable [] before, int at) {
        float[] factor = network.stateFactor();
        double[] x = new double[network.down().length / width()];
        for (int c = 0; c < x.length; c++) {
            x[c] = hidden[from + c];
        }
        double[] state = multiply(network.down(), x, network.downBias());
        for (int r = 0; before != null && factor != null && r < state.length; r++) {
            state[r] += (double) before[at + r] * factor[r];
        }
        return state;
    }

    private double[] scores(double[] state) {
        double square = 0;
        for (double value : state) {
            square += value * value;
        }
        double factor = 1 / Math.sqrt(square / state.length + network.epsilon());
        double[] x = new double[state.length];
        for (int r = 0; r < x.length; r++) {
            x[r] = state[r] * factor * network.norm()[r];
        }
        x = gelu(multiply(network.first(), x, network.firstBias()));
        x = gelu(multiply(network.second(), x, network.secondBias()));
        x = multiply(network.out(), x, null);
        double most = Double.NEGATIVE_INFINITY;
        for (double logit : x) {
            most = Math.max(most, logit);
        }
        double sum = 0;
        for (int c = 0; c < x.length; c++) {
            x[c] = Math.exp(x[c] - most);
            sum += x[c];
        }
        for (int c = 0; c < x.length; c++) {
            x[c] = Double.isFinite(x[c] / sum) ? x[c] / sum : 0;
        }
        return x;
    }

    private static double[] multiply(float[] matrix, double[] x, float @Nullable [] bias) {
        double[] y = new double[matrix.length / x.length];
        for (int r = 0; r < y.length; r++) {
            double sum = bias == null ? 0 : bias[r];
            for (int c = 0; c < x.length; c++) {
                sum += matrix[r * x.length + c] * x[c];
            }
            y[r] = sum;
        }
        return y;
    }

    private static double[] gelu(double[] x) {
        for (int i = 0; i < x.length; i++) {
            x[i] *= (1 + Erf.erf(x[i] / Math.sqrt(2))) / 2;
        }
        return x;
    }
}
