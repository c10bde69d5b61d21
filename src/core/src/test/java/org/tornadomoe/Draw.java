package org.tornadomoe;

import static org.assertj.core.api.Assertions.assertThat;

import java.lang.annotation.ElementType;
import java.lang.annotation.Retention;
import java.lang.annotation.RetentionPolicy;
import java.lang.annotation.Target;
import java.lang.reflect.Method;
import java.util.List;
import java.util.SplittableRandom;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.api.extension.ExtensionContext;
import org.junit.jupiter.api.extension.InvocationInterceptor;
import org.junit.jupiter.api.extension.ParameterContext;
import org.junit.jupiter.api.extension.ParameterResolver;
import org.junit.jupiter.api.extension.ReflectiveInvocationContext;
import org.junit.platform.commons.support.ReflectionSupport;

/** Random values for a property: the same for the same seed, and one in eight a bound of its range. */
public final class Draw {
    /** A test that is run with a draw for each of the seeds 0 to {@code tries} - 1; a failure names its seed. */
    @Target(ElementType.METHOD)
    @Retention(RetentionPolicy.RUNTIME)
    @Test
    @ExtendWith(Seeds.class)
    public @interface Property {
        int tries() default 1000;
    }

    /** One of JUnit's tests a property, since a thousand cost more than what they run. */
    static final class Seeds implements ParameterResolver, InvocationInterceptor {
        @Override
        public boolean supportsParameter(ParameterContext parameter, ExtensionContext context) {
            return parameter.getParameter().getType() == Draw.class;
        }

        @Override
        public Draw resolveParameter(ParameterContext parameter, ExtensionContext context) {
            return new Draw(0);
        }

        @Override
        public void interceptTestMethod(
                Invocation<@Nullable Void> first, ReflectiveInvocationContext<Method> test, ExtensionContext context)
                throws Throwable {
            int tries = test.getExecutable().getAnnotation(Property.class).tries();
            assertThat(tries).isPositive();
            first.proceed();
            for (long seed = 1; seed < tries; seed++) {
                Draw draw = new Draw(seed);
                try {
                    ReflectionSupport.invokeMethod(
                            test.getExecutable(), test.getTarget().orElse(null), draw);
                } catch (Throwable failure) {
                    throw new AssertionError(draw + ": " + failure.getMessage(), failure);
                }
            }
        }
    }

    private final long seed;
    private final SplittableRandom random;

    private Draw(long seed) {
        this.seed = seed;
        random = new SplittableRandom(seed);
    }

    private boolean isBound() {
        return random.nextInt(8) == 0;
    }

    public int between(int least, int most) {
        return isBound() ? random.nextBoolean() ? least : most : random.nextInt(least, most + 1);
    }

    public double between(double least, double most) {
        return isBound() ? random.nextBoolean() ? least : most : random.nextDouble(least, most);
    }

    /** One half is uniform over the range, the other over the bits of its floats, so that all magnitudes come. */
    public float between(float least, float most) {
        if (isBound()) {
            return random.nextBoolean() ? least : random.nextBoolean() ? most : 0;
        }
        if (random.nextBoolean()) {
            return (float) random.nextDouble(least, most);
        }
        float any = Float.intBitsToFloat(random.nextInt());
        return any >= least && any <= most ? any : between(least, most);
    }

    public long aLong() {
        return random.nextLong();
    }

    public boolean aBoolean() {
        return random.nextBoolean();
    }

    public <T> T oneOf(List<T> values) {
        return values.get(random.nextInt(values.size()));
    }

    @Override
    public String toString() {
        return "seed " + seed;
    }
}
