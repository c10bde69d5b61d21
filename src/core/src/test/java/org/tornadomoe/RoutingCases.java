package org.tornadomoe;

import java.util.ArrayList;
import java.util.List;
import java.util.SplittableRandom;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;

/** Routers and logits for tests. */
public final class RoutingCases {
    private RoutingCases() {}

    /** Every kind of router that fits C choices and K. */
    public static List<RouterConfig> routers(int choices, int topK) {
        List<RouterConfig> routers = new ArrayList<>(List.of(
                RouterConfig.topKThenSoftmax(), RouterConfig.topKThenSigmoid().withRoutedScalingFactor(0.75)));
        for (ScoringFunction scoring : List.of(
                ScoringFunction.SOFTMAX,
                ScoringFunction.SIGMOID,
                ScoringFunction.SQRTSOFTPLUS,
                ScoringFunction.IDENTITY)) {
            for (boolean renormalize : new boolean[] {false, true}) {
                RouterConfig plain = RouterConfig.of(scoring, renormalize);
                RouterConfig biased = plain.withCorrectionBias().withRoutedScalingFactor(2.5);
                routers.addAll(List.of(plain, biased, biased.withGroups(1, 1)));
                for (int groups : new int[] {2, 4, 8, 3}) {
                    int kept = (groups + 1) / 2;
                    if (choices % groups != 0 || choices <= groups || kept * (choices / groups) >= topK) {
                        routers.add(plain.withGroups(groups, kept));
                        routers.add(biased.withGroups(groups, kept));
                    }
                }
            }
        }
        return routers;
    }

    /** Few distinct logits, so that ties are common. */
    public static float[] ties(int count, long seed) {
        SplittableRandom random = new SplittableRandom(seed);
        float[] logits = new float[count];
        for (int i = 0; i < count; i++) {
            logits[i] = random.nextInt(-3, 4) / 2f;
        }
        return logits;
    }

    /** Logits that tend to differ. */
    public static float[] any(int count, long seed) {
        SplittableRandom random = new SplittableRandom(seed);
        float[] logits = new float[count];
        for (int i = 0; i < count; i++) {
            logits[i] = (float) (3 * random.nextGaussian());
        }
        return logits;
    }

    /** Rows of C logits that aren't all finite: one special value, a few, nothing else, for each of them. */
    public static float[] special(int rows, int choices, long seed) {
        SplittableRandom random = new SplittableRandom(seed);
        float[] special = {Float.NaN, Float.POSITIVE_INFINITY, Float.NEGATIVE_INFINITY};
        float[] logits = any(rows * choices, seed + 1);
        for (int m = 0; m < rows; m++) {
            float value = special[m % special.length];
            int kind = m / special.length % 3;
            for (int c = 0; c < choices; c++) {
                boolean set = kind == 0 ? c == m % choices : kind == 1 ? random.nextInt(3) == 0 : true;
                logits[m * choices + c] = set ? value : logits[m * choices + c];
            }
        }
        return logits;
    }
}
