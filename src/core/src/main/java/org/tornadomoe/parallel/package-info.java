/** One layer over several devices of this host, by experts or by columns of its intermediate size. */
@NullMarked
package org.tornadomoe.parallel;

import org.jspecify.annotations.NullMarked;
